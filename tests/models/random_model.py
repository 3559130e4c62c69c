"""Random quantised weights of a small shape, and the float weights they stand for."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.packing import dequantize
from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.checkpoint.weights import Weights
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from models.tiny_checkpoint import alibi_config, rope_config

__all__ = ["SHAPES", "float_weights", "random_weights"]

_CONTEXT = 512  # twice what the native engine runs at once

SHAPES = {
    "rope": rope_config(is_head_normalized=False, max_context=_CONTEXT),
    "alibi": alibi_config(is_head_normalized=False, max_context=_CONTEXT),
    # Three query heads share a key-value head; neither rows nor columns are whole tiles.
    "grouped": rope_config(
        is_head_normalized=False,
        max_context=_CONTEXT,
        hidden_size=144,
        heads=6,
        kv_heads=2,
        head_size=24,
        intermediate_size=200,
    ),
}


def random_weights(
    shape: str, bits: Literal[4, 8], *, head_bits: Literal[4, 8] = 8, seed: int = 0
) -> RandomWeights:
    """Make weights whose activations are large enough to tell positions apart."""
    quantization = QuantizationConfig(bits, head_bits=head_bits)
    return RandomWeights(replace(SHAPES[shape], quantization=quantization), seed=seed)


def float_weights(weights: Weights) -> dict[str, NDArray[np.float32]]:
    """Return the exact float weights by their names in a Llama checkpoint."""
    config: ModelConfig = weights.config
    arrays = ["model.embed_tokens", "model.norm"]
    linears = ["lm_head"]
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        arrays += [f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm"]
        linears += [f"{prefix}.self_attn.{letter}_proj" for letter in "qkvo"]
        linears += [f"{prefix}.mlp.{part}_proj" for part in ("gate", "up", "down")]
    floats = {f"{name}.weight": weights.array(name).astype(np.float32) for name in arrays}
    return floats | {f"{name}.weight": dequantize(weights.linear(name)) for name in linears}
