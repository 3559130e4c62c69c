"""The first token of a sequence in float64 numpy: what an engine is compared with.

The first token attends to nothing but itself and is turned by no angle, so queries and positions play no
part; every other weight does. Not here: the definition of the whole model, which tests hold.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.packing import dequantize
from baichuan2_tpu.checkpoint.weights import Weights

__all__ = ["LayerOutputs", "first_layer_outputs", "first_token_logits", "relative_error"]

Values = NDArray[np.float64]


class LayerOutputs(NamedTuple):
    """What a layer makes of one token. Shapes: (E,), (KV * D,), (KV * D,)."""

    states: Values
    keys: Values
    values: Values


def first_token_logits(weights: Weights, token: int) -> Values:
    """Return the logits behind one token. Shapes: (V,)."""
    states = weights.array("model.embed_tokens")[token].astype(np.float64)
    for layer in range(weights.config.layers):
        states = first_layer_outputs(weights, layer, states).states
    return _times(weights, "lm_head", _norm(weights, "model.norm", states))


def first_layer_outputs(weights: Weights, layer: int, states: Values) -> LayerOutputs:
    """Return what one layer makes of the first token of a sequence.

    Shapes: states (E,).
    """
    prefix = f"model.layers.{layer}"
    config = weights.config
    normed = _norm(weights, f"{prefix}.input_layernorm", states)
    keys = _times(weights, f"{prefix}.self_attn.k_proj", normed)
    values = _times(weights, f"{prefix}.self_attn.v_proj", normed)
    heads = np.repeat(values.reshape(config.kv_heads, -1), config.heads // config.kv_heads, axis=0)
    states = states + _times(weights, f"{prefix}.self_attn.o_proj", heads.reshape(-1))
    normed = _norm(weights, f"{prefix}.post_attention_layernorm", states)
    gate, up = (_times(weights, f"{prefix}.mlp.{name}_proj", normed) for name in ("gate", "up"))
    gated = gate / (1 + np.exp(-gate)) * up
    return LayerOutputs(states + _times(weights, f"{prefix}.mlp.down_proj", gated), keys, values)


def relative_error(got: NDArray[np.floating], wanted: Values) -> float:
    """Return the norm of the difference over the norm of what is wanted; infinite for what is not finite."""
    if not np.all(np.isfinite(got)):
        return float("inf")
    return float(np.linalg.norm(got.reshape(-1) - wanted) / np.linalg.norm(wanted))


def _times(weights: Weights, name: str, x: Values) -> Values:
    """Multiply by one linear layer, a matrix at a time in memory. Shapes: (K,) → (N,)."""
    product = dequantize(weights.linear(name)) @ x
    weights.release(name)
    return product


def _norm(weights: Weights, name: str, states: Values) -> Values:
    scale = weights.array(name).astype(np.float64)
    return states / np.sqrt(np.mean(states**2) + weights.config.norm_eps) * scale
