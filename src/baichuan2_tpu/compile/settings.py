"""What to compile: bits, context, prefill stages and the form of the head, checked against a model.

Not here: the nets themselves (``nets``), where files go (``driver``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from baichuan2_tpu.checkpoint.layout import HEAD, layer_linears
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.manifest import EmbeddingPlace, Float, HeadKind, HeadOutput

__all__ = [
    "GROUP_SIZE",
    "HEAD_BITS",
    "MOST_CONTEXT",
    "SAMPLE_CANDIDATES",
    "Bits",
    "CompileSettings",
    "default_bits",
    "default_head",
    "default_prefill",
]

Bits = Literal[4, 8, 16]

_USUAL_PREFILL = (16, 64, 128, 256)
MOST_CONTEXT = 4096
"""The longest context that was compiled and compared; Baichuan2 itself knows no longer one."""
SAMPLE_CANDIDATES = 64
"""Tokens that a "sample" head gives: above every usual top_k."""

GROUP_SIZE = 64
"""Columns that share a scale in the nets; a checkpoint's larger groups are repeated."""
HEAD_BITS: Mapping[HeadKind, int] = {"w4": 4, "w8": 8, "f16": 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileSettings:
    """Everything that decides the text of the nets, beside the model's dimensions.

    Units: ``context`` and ``prefill`` count tokens.
    """

    bits: Bits
    """Of the blocks; 16 means floats of ``dtype``."""
    head: HeadKind
    context: int
    prefill: tuple[int, ...]
    """New tokens of each stage above one, ascending; a stage of one token is always compiled too."""
    dtype: Float = "float16"
    head_output: HeadOutput = "logits"
    embedding: EmbeddingPlace = "disk"
    devices: int = 1

    @property
    def stages(self) -> tuple[int, ...]:
        """New tokens of every stage of a block, ascending from 1."""
        return (1, *self.prefill)

    def check(self, config: ModelConfig) -> None:
        """Check that this model can be compiled with these settings.

        Raises: RequestError naming the option, the value and what is allowed.
        """
        self._check_lengths(config)
        self._check_bits(config)
        self._check_head(config)
        self._check_heads(config)
        self._check_devices()

    def _check_lengths(self, config: ModelConfig) -> None:
        most = min(config.max_context, MOST_CONTEXT)
        if not 1 <= self.context <= most:
            raise RequestError(f"a context of {self.context} tokens cannot be compiled: choose 1 to {most}")
        wrong = [stage for stage in self.prefill if not 2 <= stage <= self.context]
        if wrong:
            raise RequestError(
                f"a prefill stage of {wrong[0]} tokens cannot be compiled: choose 2 to the context, "
                f"{self.context} (a stage of 1 is always there)"
            )
        if list(self.prefill) != sorted(set(self.prefill)):
            raise RequestError(f"prefill stages {_listed(self.prefill)} must rise; name each once, in order")

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
        wanted = HEAD_BITS[self.head]
        if config.quantization is None:
            raise RequestError(
                f"a {self.head} head needs a quantised checkpoint and this one holds floats; run baichuan2 "
                f"quantize SRC DST --head-bits {wanted} first, or compile with --head f16"
            )
        stored = config.quantization.head_bits
        if stored != wanted:
            raise RequestError(
                f"the checkpoint's head has {stored} bits and --head asks for {self.head}; choose w{stored} "
                f"or f16, or quantise with --head-bits {wanted}"
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


def default_prefill(context: int) -> tuple[int, ...]:
    """Return the usual prefill stages that fit a context."""
    return tuple(stage for stage in _USUAL_PREFILL if stage <= context)


def _check_shape(name: str, shape: tuple[int, int]) -> None:
    """Check that a packed layer has whole groups of columns and of rows.

    With other rows the compiler (1.30.2) would store floats in place of the integers, without a word.
    """
    if any(size % GROUP_SIZE for size in shape):
        raise RequestError(
            f"{name} has {shape[0]} rows and {shape[1]} columns, which 4 and 8 bits need to be multiples of "
            f"{GROUP_SIZE}; compile with --bits 16 --head f16"
        )


def _listed(values: tuple[int, ...]) -> str:
    return ", ".join(str(value) for value in values)
