"""The definition of the model's arithmetic, in float64 numpy, with none of the package's own code.

Follows ``modeling_baichuan.py`` (7B: RoPE, 13B: ALiBi) and Hugging Face's ``LlamaForCausalLM``. It is slow
and keeps every score, on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.config import ModelConfig

__all__ = ["alibi_slopes", "reference_layer", "reference_logits", "reference_states", "rms_norm", "rotate"]

Weights = Mapping[str, NDArray[np.floating[Any]]]
Values = NDArray[np.float64]


def reference_logits(
    config: ModelConfig,
    weights: Weights,
    tokens: Sequence[int],
    kv_dtype: type[np.floating[Any]] | None = None,
) -> Values:
    """Return the logits of every token.

    ``weights`` are in Llama layout under their checkpoint names (``….weight``); a head that is still to be
    normalised (``config.is_head_normalized``) is. ``kv_dtype`` rounds keys and values as a cache would.
    Shapes: tokens (T,) -> (T, V).
    """
    model = _Model(config, weights, kv_dtype)
    *_, states = _states(model, tokens)
    return model.norm("model.norm", states) @ model.head().T


def reference_states(
    config: ModelConfig,
    weights: Weights,
    tokens: Sequence[int],
    kv_dtype: type[np.floating[Any]] | None = None,
) -> list[Values]:
    """Return the states of every token after the embedding and after each layer.

    Shapes: tokens (T,) -> layers + 1 times (T, E).
    """
    return list(_states(_Model(config, weights, kv_dtype), tokens))


def reference_layer(config: ModelConfig, weights: Weights, layer: int, states: Values) -> Values:
    """Return the states after one layer, of a sequence whose states before it are given. Shapes: (T, E)."""
    return _layer(_Model(config, weights, None), layer, states)


@dataclass(frozen=True)
class _Model:
    config: ModelConfig
    weights: Weights
    kv_dtype: type[np.floating[Any]] | None

    def matrix(self, name: str) -> Values:
        return self.weights[f"{name}.weight"].astype(np.float64)

    def linear(self, name: str, inputs: Values) -> Values:
        return inputs @ self.matrix(name).T

    def norm(self, name: str, states: Values) -> Values:
        return rms_norm(states, self.matrix(name), self.config.norm_eps)

    def head(self) -> Values:
        if self.config.is_head_tied:
            return self.matrix("model.embed_tokens")
        head = self.matrix("lm_head")
        if self.config.is_head_normalized:
            head = head / np.linalg.norm(head, axis=1, keepdims=True)
        return head

    def round_as_cached(self, values: Values) -> Values:
        return values if self.kv_dtype is None else values.astype(self.kv_dtype).astype(np.float64)


def _states(model: _Model, tokens: Sequence[int]) -> Iterator[Values]:
    states = model.matrix("model.embed_tokens")[np.asarray(tokens)]
    yield states
    for layer in range(model.config.layers):
        prefix = f"model.layers.{layer}"
        states = states + _attention(model, prefix, model.norm(f"{prefix}.input_layernorm", states))
        states = states + _mlp(model, prefix, model.norm(f"{prefix}.post_attention_layernorm", states))
        yield states


def _layer(model: _Model, layer: int, states: Values) -> Values:
    prefix = f"model.layers.{layer}"
    states = states + _attention(model, prefix, model.norm(f"{prefix}.input_layernorm", states))
    return states + _mlp(model, prefix, model.norm(f"{prefix}.post_attention_layernorm", states))


def _attention(model: _Model, prefix: str, states: Values) -> Values:
    config, length = model.config, states.shape[0]
    prefix = f"{prefix}.self_attn"
    # (T, H, D) -> (H, T, D)
    queries, keys, values = (
        model.linear(f"{prefix}.{letter}_proj", states)
        .reshape(length, -1, config.head_size)
        .transpose(1, 0, 2)
        for letter in "qkv"
    )
    if config.position == "rope":
        queries, keys = rotate(queries, config.rope_theta), rotate(keys, config.rope_theta)
    shared = config.heads // config.kv_heads
    keys, values = (np.repeat(model.round_as_cached(rows), shared, axis=0) for rows in (keys, values))
    scores = queries @ keys.transpose(0, 2, 1) / math.sqrt(config.head_size)
    if config.position == "alibi":
        # A constant per row drops out of the softmax, so the distance may count from the key alone.
        scores = scores + alibi_slopes(config.heads)[:, None, None] * np.arange(length)
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    mixed = (weights @ values).transpose(1, 0, 2).reshape(length, -1)
    return model.linear(f"{prefix}.o_proj", mixed)


def _mlp(model: _Model, prefix: str, states: Values) -> Values:
    gate = model.linear(f"{prefix}.mlp.gate_proj", states)
    up = model.linear(f"{prefix}.mlp.up_proj", states)
    return model.linear(f"{prefix}.mlp.down_proj", gate / (1 + np.exp(-gate)) * up)


def rms_norm(states: Values, weight: Values, eps: float) -> Values:
    """Divide by the root of the mean square. Shapes: (T, E), (E,) -> (T, E)."""
    return states / np.sqrt((states**2).mean(axis=-1, keepdims=True) + eps) * weight


def rotate(states: Values, theta: float, positions: NDArray[np.integer[Any]] | None = None) -> Values:
    """Apply RoPE at positions 0 … T-1 or the given ones, first half against second half.

    Shapes: (H, T, D) -> (H, T, D).
    """
    length, size = states.shape[-2:]
    frequencies = theta ** (-np.arange(0, size, 2) / size)
    angles = (np.arange(length) if positions is None else positions)[:, None] * frequencies
    low, high = states[..., : size // 2], states[..., size // 2 :]
    return np.concatenate(
        [low * np.cos(angles) - high * np.sin(angles), high * np.cos(angles) + low * np.sin(angles)], axis=-1
    )


def alibi_slopes(heads: int) -> Values:
    """Return one slope per head; beyond the nearest power of two they lie between the next power's.

    Source: ``_get_interleave`` of the 13B model, after Press et al., "Train Short, Test Long".
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (head + 1) / power) for head in range(power)]
    between = [2 ** (-4 * (2 * head + 1) / power) for head in range(heads - power)]
    return np.array(slopes + between)
