"""What an engine needs from quantised weights, wherever they come from.

The names are those of a Llama layout without ``.weight``: ``model.layers.0.self_attn.q_proj`` (k_proj,
v_proj, o_proj), ``model.layers.0.mlp.gate_proj`` (up_proj, down_proj), ``lm_head`` for linears;
``model.embed_tokens``, ``model.layers.0.input_layernorm``, ``model.layers.0.post_attention_layernorm``,
``model.norm`` for plain arrays.
Source of the packing: AutoGPTQ's ``QuantLinear`` (format "gptq", zeros stored minus one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.config import ModelConfig

__all__ = ["WORD_BITS", "PackedLinear", "Weights"]

WORD_BITS = 32
"""Bits of the words that integers are packed into."""


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """One linear layer of K inputs and N outputs in GPTQ form.

    Shapes: ``qweight`` (K * bits / 32, N), low bits first along K; ``qzeros`` (G, N * bits / 32) holds
    zero - 1, low bits first along N; ``scales`` (G, N) with G = ceil(K / group_size).
    The weight of input k and output n is ``scales[g, n] * (q[k, n] - zero[g, n])``, g = k // group_size.
    """

    qweight: NDArray[np.int32]
    qzeros: NDArray[np.int32]
    scales: NDArray[np.float16]
    bits: int
    group_size: int


class Weights(Protocol):
    """Quantised weights, one tensor at a time."""

    @property
    def config(self) -> ModelConfig:
        """Dimensions; ``config.quantization`` is set."""
        ...

    def linear(self, name: str) -> PackedLinear:
        """Return one linear layer; its arrays may be views that last until ``release(name)``."""
        ...

    def array(self, name: str) -> NDArray[Any]:
        """Return one plain array: the embedding (V, E) float16, or a norm (E,) float32."""
        ...

    def release(self, name: str) -> None:
        """Let the memory behind ``name`` go; it can be read again."""
        ...
