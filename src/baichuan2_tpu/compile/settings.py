"""What to compile: bits, context, rows, stages and the form of the head, checked against a model.

Not here: the nets themselves (``nets``), where files go (``driver``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from baichuan2_tpu.checkpoint.layout import HEAD, layer_linears
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.manifest import EmbeddingPlace, Float, HeadKind, HeadOutput, Stage

__all__ = [
    "BITS_OF_HEAD",
    "HEAD_ROWS",
    "MOST_CONTEXT",
    "MOST_ROWS",
    "SAMPLE_CANDIDATES",
    "Bits",
    "CompileSettings",
    "compiled_group_size",
    "default_bits",
    "default_head",
    "default_stages",
    "sort_stages",
]

Bits = Literal[4, 8, 16]

MOST_CONTEXT = 4096
"""The longest context that was compiled and compared; Baichuan2's own limit."""
MOST_ROWS = 8192
"""The longest history that was compiled: the compiler takes it, and its keys of a layer fill 64 MB."""
SAMPLE_CANDIDATES = 64
"""Tokens that a "sample" head gives: above every usual top_k."""
HEAD_ROWS = (1, 16, 32)
"""Rows of the stages of the head. By the cycle model 16 rows take 1 % longer than one."""

BITS_OF_HEAD: Mapping[HeadKind, int] = {"w4": 4, "w8": 8, "f16": 16}

_USUAL_TOKENS = (1, 16, 32, 64, 128, 256)
_USUAL_HISTORIES = (128, 512, 1024, 2048, 4096, 8192)
# By the cycle model of a 7B layer, stages that are left out here would save 5 % of a launch at most.
_SHORT_HISTORY, _TOKENS_OF_SHORT = 128, (1, 16)
_LONG_HISTORY, _NOT_OF_LONG = 4096, (16,)  # 32 tokens take as long
_GROUP_SIZES = (256, 128, 64)
_MULTIPLE = 64
"""Rows and columns of packed layers are multiples of this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileSettings:
    """Everything that decides the text of the nets, beside the model's dimensions.

    Units: ``context`` counts the tokens of one conversation, ``rows`` those that all of them share.
    """

    bits: Bits
    """Of the blocks; 16 means floats of ``dtype``."""
    head: HeadKind
    context: int
    rows: int
    stages: tuple[Stage, ...]
    """Of the blocks, ascending by history, then by tokens."""
    head_rows: tuple[int, ...] = HEAD_ROWS
    """Rows of each stage of the head, ascending from 1."""
    layers_per_net: int = 1
    """Consecutive layers in one block net, which one launch computes."""
    dtype: Float = "float16"
    head_output: HeadOutput = "logits"
    embedding: EmbeddingPlace = "disk"
    devices: int = 1

    def check(self, config: ModelConfig) -> None:
        """Check that this model can be compiled with these settings.

        Raises: RequestError naming the option, the value and what is allowed.
        """
        self._check_lengths(config)
        self._check_stages()
        self._check_bits(config)
        self._check_head(config)
        self._check_heads(config)
        self._check_devices()

    def _check_lengths(self, config: ModelConfig) -> None:
        longest = min(config.max_context, MOST_CONTEXT)
        if not 1 <= self.context <= longest:
            raise RequestError(
                f"a context of {self.context} tokens cannot be compiled: choose 1 to {longest}"
            )
        if not self.context <= self.rows <= MOST_ROWS:
            raise RequestError(
                f"{self.rows} rows cannot be compiled: choose the context, {self.context}, to {MOST_ROWS}"
            )
        if self.layers_per_net < 1:
            raise RequestError(f"{self.layers_per_net} layers per net cannot be compiled: choose 1 or more")
        if self.head_rows[:1] != (1,) or list(self.head_rows) != sorted(set(self.head_rows)):
            raise RequestError(f"rows of the head {_join_numbers(self.head_rows)} must rise from 1")

    def _check_stages(self) -> None:
        for tokens, history in self.stages:
            if not (1 <= tokens <= self.context and 1 <= history <= self.rows):
                raise RequestError(
                    f"a stage of {tokens} tokens after {history} rows cannot be compiled: choose 1 to "
                    f"{self.context} tokens and 1 to {self.rows} rows"
                )
        if sort_stages(self.stages) != self.stages:
            raise RequestError("stages must rise by rows, then by tokens; name each once, in order")
        # The addresses of inputs and outputs are those of the largest stage: it must hold all others.
        largest = Stage(max((stage.tokens for stage in self.stages), default=1), self.rows)
        for stage in (Stage(1, self.rows), largest):
            if stage not in self.stages:
                raise RequestError(
                    f"a stage of {stage.tokens} tokens after {stage.history} rows is missing; name 1 token "
                    "and the most tokens with all rows"
                )

    def _check_bits(self, config: ModelConfig) -> None:
        if self.bits == 16:
            return
        stored = None if config.quantization is None else config.quantization.bits
        if stored is None:
            raise RequestError(
                f"{self.bits}-bit blocks need a quantised checkpoint and this one holds floats; run "
                f"baichuan2 quantize SRC DST --bits {self.bits} first, or compile with --bits 16"
            )
        if stored != self.bits:
            raise RequestError(
                f"the checkpoint's blocks have {stored} bits and --bits asks for {self.bits}; integers are "
                f"never quantised again: choose {stored} or 16, or quantise with --bits {self.bits}"
            )
        for name, shape in layer_linears(config, 0).items():
            _check_shape(name, shape)

    def _check_head(self, config: ModelConfig) -> None:
        if self.head == "f16":
            return
        bits = BITS_OF_HEAD[self.head]
        if config.quantization is None:
            raise RequestError(
                f"a {self.head} head needs a quantised checkpoint and this one holds floats; run baichuan2 "
                f"quantize SRC DST --head-bits {bits} first, or compile with --head f16"
            )
        stored = config.quantization.head_bits
        if stored != bits:
            raise RequestError(
                f"the checkpoint's head has {stored} bits and --head asks for {self.head}; choose w{stored} "
                f"or f16, or quantise with --head-bits {bits}"
            )
        _check_shape(HEAD, (config.vocabulary_size, config.hidden_size))

    def _check_heads(self, config: ModelConfig) -> None:
        if config.position == "alibi" and config.kv_heads != config.heads:
            raise RequestError(
                f"{config.heads} ALiBi heads over {config.kv_heads} key-value heads cannot be compiled; "
                "with ALiBi every head must have its own"
            )

    def _check_devices(self) -> None:
        # With num_device=2 TPU-MLIR 1.30.2 compiles these nets and gives each device all weights and heads:
        # none of the patterns of its DevParallel pass fits them.
        if self.devices != 1:
            raise RequestError(
                f"{self.devices} devices cannot share the model: TPU-MLIR 1.30.2 puts all of it on each; "
                "compile for 1 device, with fewer bits or a shorter context if memory is short"
            )


def default_bits(config: ModelConfig) -> Bits:
    """Return the bits of the checkpoint's blocks."""
    return 16 if config.quantization is None else config.quantization.bits


def default_head(config: ModelConfig) -> HeadKind:
    """Return the form of the checkpoint's head."""
    if config.quantization is None:
        return "f16"
    return "w4" if config.quantization.head_bits == 4 else "w8"


def default_stages(context: int, rows: int) -> tuple[Stage, ...]:
    """Return the usual stages of a context and a history.

    A launch takes free rows in a run, so no stage takes more tokens than half of the rows.
    """
    histories = [*(size for size in _USUAL_HISTORIES if size < rows), rows]
    most_tokens = max(1, min(context, rows // 2))
    tokens = [count for count in _USUAL_TOKENS if count <= most_tokens]
    stages = (Stage(count, history) for history in histories for count in tokens)
    largest = Stage(tokens[-1], rows)
    return tuple(stage for stage in stages if stage == largest or _is_useful(stage, rows))


def sort_stages(stages: Iterable[Stage]) -> tuple[Stage, ...]:
    """Return the stages ascending by history, then by tokens, each once."""
    return tuple(sorted(set(stages), key=lambda stage: (stage.history, stage.tokens)))


def compiled_group_size(config: ModelConfig) -> int:
    """Return the largest group that the compiler takes and that divides the checkpoint's and all layers.

    With floats there are no groups; 64 stands for them.
    """
    if config.quantization is None:
        return _GROUP_SIZES[-1]
    columns = [shape[1] for shape in layer_linears(config, 0).values()]
    lengths = (config.quantization.group_size, config.hidden_size, *columns)
    return next((size for size in _GROUP_SIZES if not any(length % size for length in lengths)), _MULTIPLE)


def _is_useful(stage: Stage, rows: int) -> bool:
    """Tell whether a stage saves enough beside the next larger one."""
    if stage.history == _SHORT_HISTORY and stage.history < rows:
        return stage.tokens in _TOKENS_OF_SHORT
    return stage.history < _LONG_HISTORY or stage.tokens not in _NOT_OF_LONG


def _check_shape(name: str, shape: tuple[int, int]) -> None:
    """Check that rows and columns of a packed layer are multiples of 64.

    With other rows the compiler (1.30.2) would store floats in place of the integers, without a word.
    """
    if any(size % _MULTIPLE for size in shape):
        raise RequestError(
            f"{name} has {shape[0]} rows and {shape[1]} columns, which 4 and 8 bits need to be multiples of "
            f"{_MULTIPLE}; compile with --bits 16 --head f16"
        )


def _join_numbers(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)
