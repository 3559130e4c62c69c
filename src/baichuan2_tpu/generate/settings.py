"""How an answer is chosen and when it ends, and a checkpoint's defaults for both.

Not here: the choosing itself (``sampling``).
Source: Hugging Face's ``GenerationConfig``, whose file ``generation_config.json`` every checkpoint has.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TypedDict, cast

from typing_extensions import Unpack

from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.files import find_json
from baichuan2_tpu.generate.grammar.constraint import Grammar
from baichuan2_tpu.quoting import quote

__all__ = ["GenerationSettings", "GivenSettings", "SamplingSettings", "read_settings"]

_MAX_LOGPROBS = 20  # the most an OpenAI client may ask for
_MAX_PENALTY = 2  # of presence and frequency, by OpenAI's reference; so is the bias
_MAX_BIAS = 100
_MAX_NUMBER = 2**64 - 1  # of tokens, and of a seed
_MAX_BIASED = 1024  # tokens; so many take about as long as a copy of all logits, in each step
_DEFAULT_MAX_TOKENS = (
    2048  # Baichuan2's generation_config.json; Hugging Face's own default of 20 cuts answers
)
_DEFAULT_TOP_K = 50  # Hugging Face's default, in force when a checkpoint samples and names none

# Below this the rounding of float32 logits would choose; clients send 1e-8 and mean greedy.
_GREEDY_BELOW = 1e-3


@dataclass(frozen=True, slots=True)
class SamplingSettings:
    """How the next token is chosen, applied in this order: penalties, temperature, top_k, top_p, min_p.

    ``temperature`` 0 is greedy. ``top_k`` 0, ``top_p`` 1, ``min_p`` 0 and ``repetition_penalty`` 1 are off.
    ``repetition_penalty`` is for tokens of prompt and answer; ``presence_penalty`` and ``frequency_penalty``,
    off at 0, for those of the answer. ``logit_bias`` pairs token ids with what is added to their logits.
    Without ``seed`` every run differs.

    Raises: RequestError naming the value and the range that is allowed.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _check_range("temperature", self.temperature, 0, 100)
        _check_range("top_k", self.top_k, 0, math.inf)
        _check_range("top_p", self.top_p, 0, 1)
        _check_range("min_p", self.min_p, 0, 1)
        _check_range("repetition_penalty", self.repetition_penalty, 0.01, 100)
        if self.seed is not None:
            _check_range("seed", self.seed, 0, 2**64 - 1)
        _check_range("presence_penalty", self.presence_penalty, -_MAX_PENALTY, _MAX_PENALTY)
        _check_range("frequency_penalty", self.frequency_penalty, -_MAX_PENALTY, _MAX_PENALTY)
        _check_range("the number of tokens in logit_bias", len(self.logit_bias), 0, _MAX_BIASED)
        for token_id, bias in self.logit_bias:
            _check_range(f"logit_bias of token {token_id}", bias, -_MAX_BIAS, _MAX_BIAS)

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < _GREEDY_BELOW


class GivenSettings(TypedDict, total=False):
    """The keywords that override a model's own settings; None keeps the model's own.

    ``stop`` is one text or several, ``logit_bias`` maps token ids to what is added to their logits.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    max_tokens: int | None
    stop: str | Iterable[str] | None
    stop_ids: Iterable[int] | None
    logprobs: int | None
    prompt_logprobs: int | None
    grammar: Grammar | None
    min_tokens: int | None
    ignore_eos: bool | None
    own_stop_ids: Iterable[int] | None


@dataclass(frozen=True, slots=True)
class GenerationSettings:
    """How tokens are chosen and when the answer ends.

    ``logprobs`` asks for the log probability of each token and of that many most likely ones;
    ``prompt_logprobs`` asks the same for the tokens of the prompt, which is then computed without reuse.
    ``grammar`` constrains the complete answer; an answer cut by ``max_tokens`` is the beginning of one. No
    id ends the answer before ``min_tokens``, unless a grammar allows only its end. With ``ignore_eos`` only
    ``own_stop_ids`` and stop strings end it; other stop ids are never chosen.

    Units: ``max_tokens`` counts the answer's tokens; 0 is for ``prompt_logprobs`` alone.
    Raises: RequestError naming the value and the range that is allowed.
    """

    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    max_tokens: int = _DEFAULT_MAX_TOKENS
    stop: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    own_stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        _check_range("max_tokens", self.max_tokens, int(self.prompt_logprobs is None), math.inf)
        _check_range("min_tokens", self.min_tokens, 0, self.max_tokens)
        for name, count in (("logprobs", self.logprobs), ("prompt_logprobs", self.prompt_logprobs)):
            if count is not None:
                _check_range(name, count, 0, _MAX_LOGPROBS)
        if "" in self.stop:
            raise RequestError("a stop string is empty; one character or more is allowed")

    def override(self, **given: Unpack[GivenSettings]) -> GenerationSettings:
        """Return a copy of these settings with the given values.

        Raises: RequestError naming a setting that does not exist, or a value and what is allowed.
        """
        values = cast("Mapping[str, object]", given)
        _check_names(values)
        changes = {name: _convert(name, value) for name, value in values.items() if value is not None}
        sampling = {name: changes.pop(name) for name in _SAMPLING_NAMES & changes.keys()}
        # Each value was checked by its name; the types are the classes' own.
        return replace(self, sampling=replace(self.sampling, **sampling), **changes)  # pyright: ignore[reportArgumentType]


def read_settings(directory: Path) -> GenerationSettings:
    """Return the defaults of a checkpoint's ``generation_config.json``; greedy where it does not say.

    Raises: CheckpointError when the file is damaged or a value in it is not allowed.
    """
    path = directory / "generation_config.json"
    values = find_json(path) or {}
    try:
        return GenerationSettings(
            sampling=_sampling(values),
            max_tokens=_integer(values, "max_new_tokens", _DEFAULT_MAX_TOKENS),
            stop_ids=_stop_ids("eos_token_id", values.get("eos_token_id")),
        )
    except RequestError as exc:
        raise CheckpointError(f"{path}: {exc}") from exc


def _sampling(values: Mapping[str, object]) -> SamplingSettings:
    is_sampling = values.get("do_sample", False) is True
    return SamplingSettings(
        temperature=_number(values, "temperature", 1.0) if is_sampling else 0.0,
        top_k=_integer(values, "top_k", _DEFAULT_TOP_K),
        top_p=_number(values, "top_p", 1.0),
        min_p=_number(values, "min_p", 0.0),
        repetition_penalty=_number(values, "repetition_penalty", 1.0),
    )


_SAMPLING_NAMES = {setting.name for setting in fields(SamplingSettings)}
_INTEGERS = {"top_k", "seed", "max_tokens", "logprobs", "prompt_logprobs", "min_tokens"}


def _check_names(given: Collection[str]) -> None:
    allowed = GivenSettings.__annotations__
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise RequestError(f"there is no setting {quote(unknown[0])}; allowed are {', '.join(allowed)}")


def _convert(name: str, value: object) -> object:
    """Return a value that was given by keyword as the classes above hold it."""
    if name == "grammar":
        return _grammar(value)
    if name == "ignore_eos":
        return _flag(name, value)
    if name == "stop":
        return _stop_strings(value)
    if name in ("stop_ids", "own_stop_ids"):
        return _stop_ids(name, value)
    if name == "logit_bias":
        return _biases(value)
    return _integer({name: value}, name, 0) if name in _INTEGERS else _number({name: value}, name, 0)


def _grammar(value: object) -> object:
    if hasattr(value, "start"):
        return value
    raise RequestError(f"grammar is {quote(value)}; a compiled grammar is allowed")


def _flag(name: str, value: object) -> bool:
    if isinstance(value, bool):
        return value
    raise RequestError(f"{name} is {quote(value)}; True or False is allowed")


def _stop_strings(value: object) -> tuple[str, ...]:
    texts = (value,) if isinstance(value, str) else value
    if isinstance(texts, Iterable):
        listed = tuple(cast("Iterable[object]", texts))
        if all(isinstance(text, str) for text in listed):
            return cast("tuple[str, ...]", listed)
    raise RequestError(f"stop is {quote(value)}; a text or several are allowed")


def _biases(value: object) -> tuple[tuple[int, float], ...]:
    if not isinstance(value, Mapping):
        raise RequestError(f"logit_bias is {quote(value)}; a mapping of token ids to numbers is allowed")
    pairs = cast("Mapping[object, object]", value).items()
    return tuple(
        (_integer({"id": token_id}, "id", 0), _number({"bias": bias}, "bias", 0)) for token_id, bias in pairs
    )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    # Written so that NaN, which compares false with everything, is refused.
    if not (low <= value <= min(high, _MAX_NUMBER)):
        allowed = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
        raise RequestError(f"{name} is {quote(value)}; {allowed} is allowed")


def _number(values: Mapping[str, object], name: str, default: float) -> float:
    value = values.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, Real):  # NumPy's numbers are some too
        raise RequestError(f"{name} is {quote(value)}; a number is allowed")
    try:
        return float(value)
    except OverflowError as error:
        raise RequestError(f"{name} is {quote(value)}; a smaller number is allowed") from error


def _integer(values: Mapping[str, object], name: str, default: int) -> int:
    value = values.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise RequestError(f"{name} is {quote(value)}; a whole number is allowed")
    return int(value)


def _stop_ids(name: str, value: object) -> frozenset[int]:
    """Return the ids of a setting that is an id, a list of ids, or null."""
    if value is None:
        return frozenset()
    ids = [value]
    if isinstance(value, Iterable) and not isinstance(value, str):
        ids = list(cast("Iterable[object]", value))
    return frozenset(_integer({name: item}, name, -1) for item in ids)
