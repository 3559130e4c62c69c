"""The first token of a sequence in float64 numpy: what an engine is compared with.

The first token attends to nothing but itself and is turned by no angle, so queries and positions play no
part; every other weight does. Not here: sequences of any length (``float_model``).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.layout import (
    ATTENTION_NORM,
    ATTENTION_OUTPUT,
    DOWN,
    EMBEDDING,
    FINAL_NORM,
    GATE,
    HEAD,
    MLP_NORM,
    QKV,
    UP,
    layer_prefix,
)
from baichuan2_tpu.checkpoint.packing import dequantize
from baichuan2_tpu.checkpoint.weights import Weights
from baichuan2_tpu.reference.operations import rms_norm, swiglu

__all__ = ["LayerOutputs", "first_layer_outputs", "first_token_logits"]

Values = NDArray[np.float64]


class LayerOutputs(NamedTuple):
    """The outputs of a layer for one token. Shapes: (E,), (KV * D,), (KV * D,)."""

    states: Values
    keys: Values
    values: Values


def first_token_logits(weights: Weights, token: int) -> Values:
    """Return the logits behind one token. Shapes: (V,)."""
    states = weights.array(EMBEDDING)[token].astype(np.float64)
    for layer in range(weights.config.layers):
        states = first_layer_outputs(weights, layer, states).states
    return _multiply(weights, HEAD, _norm(weights, FINAL_NORM, states))


def first_layer_outputs(weights: Weights, layer: int, states: Values) -> LayerOutputs:
    """Return the outputs of one layer for the first token of a sequence.

    Shapes: states (E,).
    """
    prefix, config = layer_prefix(layer), weights.config
    normed = _norm(weights, f"{prefix}{ATTENTION_NORM}", states)
    keys, values = (_multiply(weights, f"{prefix}{name}", normed) for name in QKV[1:])
    heads = np.repeat(values.reshape(config.kv_heads, -1), config.heads // config.kv_heads, axis=0)
    states = states + _multiply(weights, f"{prefix}{ATTENTION_OUTPUT}", heads.reshape(-1))
    normed = _norm(weights, f"{prefix}{MLP_NORM}", states)
    gate, up = (_multiply(weights, f"{prefix}{name}", normed) for name in (GATE, UP))
    return LayerOutputs(states + _multiply(weights, f"{prefix}{DOWN}", swiglu(gate, up)), keys, values)


def _multiply(weights: Weights, name: str, x: Values) -> Values:
    """Multiply by one linear layer, one matrix at a time in memory. Shapes: (K,) → (N,)."""
    product = dequantize(weights.linear(name)) @ x
    weights.release(name)
    return product


def _norm(weights: Weights, name: str, states: Values) -> Values:
    return rms_norm(states, weights.array(name).astype(np.float64), weights.config.norm_eps)
