"""Dimensions of a model and how its weights are quantised, read from and written to ``config.json``.

Not here: file access (``checkpoint``), generation settings (``generate``).
Source: the official ``config.json`` of Baichuan-7B, Baichuan2-7B and Baichuan2-13B; Hugging Face's ``LlamaConfig``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from baichuan2_tpu.errors import CheckpointError

__all__ = ["HEAD_BITS", "ModelConfig", "Position", "QuantizationConfig"]

Position = Literal["rope", "alibi"]

HEAD_BITS = 8
"""The head loses too much below 8 bits (shared facts: accuracy to hold)."""

_BAICHUAN_7B_HIDDEN = 4096
_BAICHUAN2_VOCABULARY = 125_696
_DEFAULT_CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class QuantizationConfig:
    """How the linear layers are stored: asymmetric integers of ``bits`` bits, one scale and zero a group.

    Units: ``group_size`` counts consecutive input columns that share a scale.
    """

    bits: Literal[4, 8]
    group_size: int = 64
    head_bits: Literal[4, 8] = HEAD_BITS


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Dimensions of a decoder of the Baichuan and Llama family.

    Units: sizes count elements; ``max_context`` counts tokens.
    """

    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary_size: int
    norm_eps: float
    position: Position
    rope_theta: float
    max_context: int
    is_head_tied: bool
    is_head_normalized: bool
    bos_id: int | None
    eos_ids: tuple[int, ...]
    quantization: QuantizationConfig | None = None
