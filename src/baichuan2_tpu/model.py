"""An opened model: what a script, the command line, the server, evaluation and the benchmark all use.

``load`` does everything at once. Code that must check more between files and weights takes two steps:
``find_model``, which opens tokenizer, template and settings, and then ``ModelFiles.open``. Nothing else opens
an engine. Not here: many requests on one engine (``server``), float weights that are scored as they are
(``reference.float_model``).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal, cast

from typing_extensions import Self, Unpack

from baichuan2_tpu.chat import (
    AnswerPiece,
    Conversation,
    join_events,
    prompt_budget,
    read_message,
    read_result,
)
from baichuan2_tpu.checkpoint.identify import Located, ModelKind
from baichuan2_tpu.config import KvBits, ModelConfig, choose_kv_bits
from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.engine.registry import CpuSettings, open_engine
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.loop import ReadProgress, Result, generate
from baichuan2_tpu.generate.settings import GenerationSettings, GivenSettings, read_settings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.memory import fit_context
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.resolve import resolve_model
from baichuan2_tpu.text.messages import Message
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.template import ChatTemplate, find_template, open_template
from baichuan2_tpu.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from baichuan2_tpu.engine.packed_file import ByteProgress
    from baichuan2_tpu.quantize import QuantizeEvent

__all__ = [
    "EngineSettings",
    "LoadProgress",
    "Messages",
    "Model",
    "ModelFiles",
    "find_model",
    "load",
    "read_config",
]

Messages = str | Sequence[Message | Mapping[str, str]]
"""A text of the user, or a conversation: each message with ``role`` and ``content``."""

Notice = Callable[[str], None]
LoadProgress = Callable[[Literal["fetching", "quantising", "loading"], int, int], None]
"""Is called with what is being done, the bytes done so far, and all bytes."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """Where and how to run; None leaves it to the model or the machine.

    Raises: RequestError naming a number that is not allowed.
    """

    engine: str = "auto"
    device: int = 0
    context: int | None = None
    threads: int | None = None
    is_exact: bool = False
    kv: KvBits | None = None
    """Bits of keys and values on the cpu."""
    keep_packed: bool = True
    """Whether the cpu's packed weights are kept in the user's cache for the next start."""

    def __post_init__(self) -> None:
        for name, number, least in (
            ("device", self.device, 0),
            ("context", self.context, 1),
            ("threads", self.threads, 1),
        ):
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, Integral):
                raise RequestError(f"{name} is {quote(number)}; a whole number is allowed")
            if number < least:
                raise RequestError(f"{name} is {number}; {least} or more is allowed")
        if self.kv not in (None, 8, 16):
            raise RequestError(f"kv is {self.kv}; 8 and 16 bits are allowed")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model whose files are here: tokenizer, template and settings are open, no weight has been read."""

    name: str
    located: Located
    tokenizer: Tokenizer = field(repr=False)
    template: ChatTemplate | None = field(repr=False)
    """None for a base model, which only continues text."""
    settings: GenerationSettings

    @classmethod
    def read(cls, name: str, located: Located) -> Self:
        """Read what lies beside the weights.

        Raises: CheckpointError when a file is missing or damaged.
        """
        tokenizer = open_tokenizer(located.path)
        return cls(
            name, located, tokenizer, find_template(located.path, tokenizer), read_settings(located.path)
        )

    def read_config(self) -> ModelConfig:
        """Return the dimensions.

        Raises: CheckpointError or ArtifactError when the file that has them cannot be read.
        """
        return read_config(self.located)

    def require_template(self) -> ChatTemplate:
        """Return the chat template.

        Raises: CheckpointError for a model that has none, or whose template cannot be read.
        """
        return self.template or open_template(self.located.path, self.tokenizer)

    def open(
        self,
        running: EngineSettings | None = None,
        *,
        notice: Notice = _log.info,
        progress: ByteProgress | None = None,
    ) -> Model:
        """Load the weights into an engine; ``progress`` is told their bytes.

        What runs on this machine's processor is checked against its memory first.
        Raises: ContextLengthError with the numbers; what ``engine.registry.open_engine`` raises.
        """
        running = running or EngineSettings()
        context = running.context
        if running.engine in ("auto", "cpu") and not self.located.is_compiled:
            kv_bits = choose_kv_bits(running.kv, is_exact=running.is_exact)
            context = fit_context(self.read_config(), context, notice, kv_bits=kv_bits)
        engine = open_engine(
            self.located,
            engine=running.engine,
            device=running.device,
            context=context,
            cpu=CpuSettings(running.threads, running.is_exact, running.kv, running.keep_packed),
            progress=progress,
            notice=notice,
        )
        if engine.is_simulated:
            notice(
                "running on the simulator of a BM1684X: the same tokens, slowly; not a measure of its speed"
            )
        return Model(self, engine)


class Model:
    """An opened model; ``load`` makes one, and ``close`` or the end of ``with`` frees it.

    ``engine`` is what computes; its ``name`` says where. ``settings`` are the model's own, from its
    ``generation_config.json``; a keyword given to a call replaces one of them for that call: temperature,
    top_k, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty, logit_bias, seed,
    max_tokens, stop, stop_ids, logprobs, prompt_logprobs, grammar, min_tokens, ignore_eos, own_stop_ids.
    One thread may use a model at a time.
    """

    def __init__(self, files: ModelFiles, engine: Engine) -> None:
        self.files = files
        self.engine = engine

    @property
    def name(self) -> str:
        """What the model was called when it was loaded."""
        return self.files.name

    @property
    def kind(self) -> ModelKind:
        """What was loaded: "quantized" for a checkpoint, "bundle", or "bmodel"."""
        return self.files.located.kind

    @property
    def config(self) -> ModelConfig:
        """The dimensions."""
        return self.engine.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns text into token ids and back: ``encode``, ``decode``."""
        return self.files.tokenizer

    @property
    def template(self) -> ChatTemplate | None:
        """Writes messages as token ids; None for a base model."""
        return self.files.template

    @property
    def settings(self) -> GenerationSettings:
        """The model's default settings of an answer."""
        return self.files.settings

    @property
    def max_context(self) -> int:
        """Tokens that a prompt and its answer can have together."""
        return self.engine.max_context

    def chat(
        self, messages: Messages, *, progress: ReadProgress | None = None, **settings: Unpack[GivenSettings]
    ) -> Result:
        """Answer a text or a conversation.

        The result has ``text``, ``token_ids``, ``finish_reason`` and ``stats``. ``progress`` is called while
        a prompt is read, with the tokens read so far and all tokens.
        Where a conversation outgrows the context its oldest rounds are left out; ``stream`` says how many.
        Every call computes its whole prompt; ``conversation`` reuses what was computed before.
        Raises: RequestError for a setting or a message that is not allowed; ContextLengthError when the
        newest message does not fit; CheckpointError for a model without a chat template; BackendError.
        """
        return read_result(self.stream(messages, progress=progress, **settings))

    def stream(
        self, messages: Messages, *, progress: ReadProgress | None = None, **settings: Unpack[GivenSettings]
    ) -> Generator[AnswerPiece, None, None]:
        """Answer as ``chat`` does and yield the pieces as they come; the last one has the result.

        Raises: as ``chat``; what is wrong with messages and settings at once, before the first piece.
        """
        chosen = self.settings.override(**settings)
        budget = prompt_budget(self.max_context, chosen.max_tokens)
        prompt = self.files.require_template().render(_read_messages(messages), budget)
        return self._answer(prompt.ids, chosen, prompt.dropped_rounds, progress)

    def conversation(self, *, system: str | None = None, **settings: Unpack[GivenSettings]) -> Conversation:
        """Begin a conversation, which keeps its messages and computes only the new part of each prompt.

        It holds one of the engine's sequences until it is closed.
        Raises: RequestError for a setting that is not allowed; CheckpointError for a model without a chat
        template; BackendError when the engine has no sequence left.
        """
        chosen, template = self.settings.override(**settings), self.files.require_template()
        return Conversation(self.engine, self.tokenizer, template, chosen, system=system)

    def generate(self, prompt: str | Sequence[int], **settings: Unpack[GivenSettings]) -> Result:
        """Continue a text, or token ids, as they are: no chat template, no token in front.

        Raises: RequestError for a setting that is not allowed or an empty prompt; ContextLengthError when the
        prompt does not fit; BackendError.
        """
        return read_result(self.stream_generate(prompt, **settings))

    def stream_generate(
        self, prompt: str | Sequence[int], **settings: Unpack[GivenSettings]
    ) -> Generator[AnswerPiece, None, None]:
        """Continue as ``generate`` does and yield the pieces as they come; the last one has the result.

        Raises: as ``generate``.
        """
        chosen = self.settings.override(**settings)
        return self._answer(
            self.tokenizer.encode(prompt) if isinstance(prompt, str) else _read_ids(prompt), chosen
        )

    def tokens(self, prompt: Messages) -> list[int]:
        """Return the token ids of a text as it is, or of the prompt that a conversation makes.

        Raises: RequestError for a message that is not allowed; CheckpointError for a conversation with a
        model without a chat template.
        """
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return list(self.files.require_template().render(_read_messages(prompt), self.max_context).ids)

    def close(self) -> None:
        """Free the weights and every conversation's memory; closing twice is allowed."""
        self.engine.close()

    def __repr__(self) -> str:
        return f"<Model {self.name} on {self.engine.name}, {self.max_context} tokens of context>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self,
        ids: Sequence[int],
        settings: GenerationSettings,
        dropped_rounds: int = 0,
        progress: ReadProgress | None = None,
    ) -> Generator[AnswerPiece, None, None]:
        marks = self.template.stop_ids if self.template else frozenset[int]()
        settings = replace(settings, stop_ids=settings.stop_ids | marks)
        with TrackedSequence(self.engine) as sequence:
            events = generate(sequence, self.tokenizer, ids, settings, progress=progress)
            yield from join_events(events, dropped_rounds)


def load(  # noqa: PLR0913 - all but the first are optional and go by name
    model: str | Path,
    *,
    engine: str = "auto",
    device: int = 0,
    context: int | None = None,
    threads: int | None = None,
    exact: bool = False,
    kv: KvBits | None = None,
    keep_packed: bool = True,
    notice: Notice | None = None,
    progress: LoadProgress | None = None,
) -> Model:
    """Open a model: a known name such as "demo", a checkpoint, a bundle, or a .gguf file.

    ``engine`` is "auto", "cpu", "bmrt", "sail" or "simulator"; "auto" runs a checkpoint on the cpu and a
    compiled model on TPU number ``device``. ``context`` is how many tokens a prompt and its answer may have
    together; the default is the model's own limit, or the one it was compiled for. ``threads``, ``exact``
    (activations in float32), ``kv`` (bits of keys and values, 8 or 16) and ``keep_packed`` (keep the weights
    of a large model as the kernels read them, so that the next start takes a second) are for the cpu.
    ``notice`` is called with lines of text, such as what is being fetched; print will do, and the default is
    the log. ``progress`` is called while a model is fetched, quantised or loaded.

    Side effect: a model that is not in the user's cache yet is fetched, and quantised, into it; packed
    weights are kept there too.
    Raises: RequestError, FetchError, CheckpointError or ArtifactError for what cannot be opened;
    ContextLengthError with the numbers where memory is too small; BackendError where it cannot run.
    """
    running = EngineSettings(engine, device, context, threads, exact, kv, keep_packed)
    files = find_model(model, notice=notice or _log.info, progress=progress)
    return files.open(
        running,
        notice=notice or _log.info,
        progress=None if progress is None else lambda done, total: progress("loading", done, total),
    )


def find_model(
    model: str | Path, *, notice: Notice = _log.info, progress: LoadProgress | None = None
) -> ModelFiles:
    """Find the quantised checkpoint or the compiled model behind ``model``, and read what is beside it.

    A ``Path`` is never taken for a known name.
    Side effect: what is not here yet is fetched and quantised into the user's cache.
    Raises: RequestError, FetchError, CheckpointError.
    """
    located = resolve_model(
        os.path.join(".", model) if isinstance(model, Path) else model,  # noqa: PTH118 - Path drops the dot
        notice=notice,
        progress=None if progress is None else _quantise_progress(progress),
        fetch_progress=None if progress is None else lambda done, total: progress("fetching", done, total),
    )
    return ModelFiles.read(str(model), located)


def read_config(located: Located) -> ModelConfig:
    """Return the dimensions of a located model.

    Raises: CheckpointError or ArtifactError when the file that has them cannot be read.
    """
    if located.kind == "bundle":
        from baichuan2_tpu.manifest import Manifest  # noqa: PLC0415

        return Manifest.read(located.path).model
    if located.kind == "bmodel":
        from baichuan2_tpu.engine.compiled.open_vendor_bmodel import read_vendor_config  # noqa: PLC0415

        return read_vendor_config(located.path)
    return ModelConfig.read(located.path / "config.json")


def _quantise_progress(progress: LoadProgress) -> Callable[[QuantizeEvent], None]:
    return lambda event: progress("quantising", event.done_bytes, event.total_bytes)


def _read_ids(prompt: object) -> list[int]:
    """Return the token ids of a prompt that is not a text."""
    if isinstance(prompt, Iterable) and not isinstance(prompt, bytes):
        ids = list(cast("Iterable[object]", prompt))
        if all(isinstance(token_id, Integral) for token_id in ids):
            return [int(token_id) for token_id in cast("list[int]", ids)]
    raise RequestError(
        f"the prompt is {quote(cast('object', prompt))}; one text, or the token ids of one, is allowed"
    )


def _read_messages(messages: Messages) -> list[Message]:
    if isinstance(messages, str):
        return [Message("user", messages)]
    if isinstance(messages, Mapping | bytes) or not isinstance(cast("object", messages), Iterable):
        raise RequestError(f"messages is {quote(messages)}; a text or a list of messages is allowed")
    return [item if isinstance(item, Message) else read_message(item) for item in messages]
