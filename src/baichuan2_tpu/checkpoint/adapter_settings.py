"""Read the settings of a LoRA adapter as PEFT saves them, and refuse what cannot be merged.

Not here: its tensors (``adapter``).
Source: ``LoraConfig`` and ``get_pattern_key`` of PEFT 0.20.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from typing_extensions import Self

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import read_json
from baichuan2_tpu.quoting import quote

__all__ = ["ADAPTER_CONFIG", "MERGE_WITH_PEFT", "AdapterSettings", "find_adapter"]

ADAPTER_CONFIG = "adapter_config.json"
MERGE_WITH_PEFT = "merge it with PEFT's merge_and_unload(), save the model, and quantise that"

_KEPT_BASE = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base model as it is; PiSSA, OLoRA and others change it."""
_OTHER_METHODS = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "megatron_config",
    "fan_in_fan_out",
)
"""Keys that make something else than LoRA of the adapter when they are set."""
_MOST_RANK = 1 << 16
_MOST_PATTERNS = 1024
_MOST_PATTERN_LENGTH = 200
_MOST_REPETITIONS = 2  # in a pattern: each makes matching slower by the length of a name
_MOST_REPEATING = 16
_COSTLY = re.compile(r"\)[*+?{]|\(\?|\\[1-9]")
_REPETITION = re.compile(r"[*+{]")


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """How the matrices of an adapter are added to those of its base."""

    rank: int
    alpha: float
    is_rank_stabilized: bool
    """rsLoRA: alpha is divided by the square root of the rank."""
    rank_pattern: Mapping[str, float]
    alpha_pattern: Mapping[str, float]
    whole_modules: tuple[str, ...]
    """What was trained whole: names of modules, or the ends of names."""
    base: str | None
    """The model it was trained on, as the trainer called it."""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read ``adapter_config.json``.

        Raises: CheckpointError naming what is not plain LoRA, and what to do.
        """
        path = directory / ADAPTER_CONFIG
        if not path.is_file():
            raise CheckpointError(
                f"{directory}: holds no {ADAPTER_CONFIG}; name the folder of an adapter that PEFT saved"
            )
        values = read_json(path)
        _check_method(path, values)
        return cls(
            rank=int(_number(path, "r", values.get("r", 8))),
            alpha=_number(path, "lora_alpha", values.get("lora_alpha", 8)),
            is_rank_stabilized=values.get("use_rslora") is True,
            rank_pattern=_patterns(path, values, "rank_pattern"),
            alpha_pattern=_patterns(path, values, "alpha_pattern"),
            whole_modules=_names(path, values, "modules_to_save"),
            base=_base(values),
        )

    @property
    def quoted_base(self) -> str:
        """The same for messages."""
        return _quote_base(self.base)

    def rank_of(self, module: str) -> int:
        """Return the rank of a module's matrices."""
        return int(_match(self.rank_pattern, module, self.rank))

    def scale_of(self, module: str) -> float:
        """Return what the product of a module's matrices is multiplied by."""
        rank, alpha = self.rank_of(module), _match(self.alpha_pattern, module, self.alpha)
        return alpha / (math.sqrt(rank) if self.is_rank_stabilized else rank)


def find_adapter(directory: Path) -> str | None:
    """Return the model that the adapter in a folder was trained on, quoted; None where there is no adapter.

    Raises: CheckpointError for settings that are not JSON.
    """
    path = directory / ADAPTER_CONFIG
    return _quote_base(_base(read_json(path))) if path.is_file() else None


def _base(values: Mapping[str, object]) -> str | None:
    name = values.get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def _quote_base(base: str | None) -> str:
    return "a model that it does not name" if base is None else quote(base)


def _check_method(path: Path, values: Mapping[str, object]) -> None:
    """Check that the adapter is plain LoRA on a base that it did not change."""
    if values.get("peft_type") != "LORA":
        raise _refusal(path, "peft_type", values.get("peft_type"), "LORA")
    if values.get("bias", "none") != "none":
        raise _refusal(path, "bias", values.get("bias"), "none: the models have no biases")
    if values.get("init_lora_weights", True) not in _KEPT_BASE:
        raise _refusal(
            path, "init_lora_weights", values["init_lora_weights"], "what leaves the base model as it was"
        )
    for key in _OTHER_METHODS:
        if values.get(key):
            raise _refusal(path, key, values[key], "none")


def _refusal(path: Path, key: str, value: object, allowed: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {key} is {quote(value)}, allowed for merging is {allowed}; {MERGE_WITH_PEFT}"
    )


def _number(path: Path, key: str, value: object) -> float:
    """Return a rank or an alpha, which is above 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= _MOST_RANK:
        raise CheckpointError(
            f"{path}: {key} is {quote(value)}, allowed is a number above 0 up to {_MOST_RANK}; "
            "fetch the adapter again"
        )
    return value


def _names(path: Path, values: Mapping[str, object], key: str) -> tuple[str, ...]:
    """Return a list of names; null is an empty one."""
    items: object = values.get(key) or []
    names = cast("list[object]", items) if isinstance(items, list) else [items]
    if not all(isinstance(name, str) for name in names):
        raise _refusal(path, key, cast("object", items), "a list of names")
    return tuple(map(str, names))


def _patterns(path: Path, values: Mapping[str, object], key: str) -> dict[str, float]:
    """Return the numbers of a pattern's modules; patterns that could take for ever are refused."""
    patterns: object = values.get(key) or {}
    if not isinstance(patterns, dict) or len(cast("dict[str, object]", patterns)) > _MOST_PATTERNS:
        raise _refusal(path, key, cast("object", patterns), f"an object of at most {_MOST_PATTERNS} patterns")
    numbers = {
        pattern: _number(path, f"{key}.{quote(pattern)}", number)
        for pattern, number in cast("dict[str, object]", patterns).items()
    }
    repeating = [pattern for pattern in numbers if _REPETITION.search(pattern)]
    for pattern in numbers:
        if len(repeating) > _MOST_REPEATING or not _is_quick(pattern):
            raise _refusal(path, key, pattern, "names of modules and simple patterns")
    return numbers


def _is_quick(pattern: str) -> bool:
    """Tell whether a pattern can be matched in little time."""
    if len(pattern) > _MOST_PATTERN_LENGTH or _COSTLY.search(pattern):
        return False
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError):
        return False
    return len(_REPETITION.findall(pattern)) <= _MOST_REPETITIONS


def _match(patterns: Mapping[str, float], module: str, default: float) -> float:
    """Return the number of the first pattern that the name of a module ends with."""
    for pattern, number in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return number
    return default
