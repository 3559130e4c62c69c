"""The model in float32 numpy, fast enough to score tens of thousands of tokens: what quantising is judged by.

One window at a time, all scores of a head kept. Only RoPE models: the demo is one.
Source: Hugging Face's ``LlamaForCausalLM``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.floats import FloatCheckpoint

__all__ = ["ROWS_AT_ONCE", "FloatModel"]

Values = NDArray[np.float32]

ROWS_AT_ONCE = 64
"""Rows of logits held at once: memory that is asked for anew costs more here than the arithmetic on it."""


class FloatModel:
    """Every weight of a float checkpoint in memory, as float32."""

    def __init__(self, checkpoint: FloatCheckpoint) -> None:
        self.config = checkpoint.config
        assert self.config.position == "rope", "the float model knows RoPE only"
        self._checkpoint = checkpoint
        self._tensors: dict[str, Values] = {}

    def logits(self, tokens: list[int]) -> Iterator[Values]:
        """Yield the logits of one window's tokens, some rows at a time. Shapes: (T,) -> (rows, V)."""
        states = self._last_states(tokens)
        head = "model.embed_tokens" if self.config.is_head_tied else "lm_head"
        for start in range(0, len(tokens), ROWS_AT_ONCE):
            yield self._linear(head, states[start : start + ROWS_AT_ONCE])

    def _last_states(self, tokens: list[int]) -> Values:
        """Return what goes into the head. Shapes: (T,) -> (T, E)."""
        states = self._tensor("model.embed_tokens")[tokens]
        angles = self._angles(len(tokens))
        for layer in range(self.config.layers):
            prefix = f"model.layers.{layer}"
            states = states + self._attention(prefix, self._norm(f"{prefix}.input_layernorm", states), angles)
            inner = self._norm(f"{prefix}.post_attention_layernorm", states)
            gate = self._linear(f"{prefix}.mlp.gate_proj", inner)
            up = self._linear(f"{prefix}.mlp.up_proj", inner)
            states = states + self._linear(f"{prefix}.mlp.down_proj", _swiglu(gate, up))
        return self._norm("model.norm", states)

    def _tensor(self, name: str) -> Values:
        """Return a tensor, read at its first use."""
        if name not in self._tensors:
            self._tensors[name] = self._checkpoint.read(name)
        return self._tensors[name]

    def _linear(self, name: str, states: Values) -> Values:
        return states @ self._tensor(name).T

    def _norm(self, name: str, states: Values) -> Values:
        mean_square = np.square(states).mean(axis=-1, keepdims=True)
        return states / np.sqrt(mean_square + np.float32(self.config.norm_eps)) * self._tensor(name)

    def _angles(self, length: int) -> Values:
        """Return the angle of every position and pair. Shapes: (T, D / 2)."""
        size = self.config.head_size
        frequencies = self.config.rope_theta ** (-np.arange(0, size, 2) / size)
        return (np.arange(length)[:, None] * frequencies).astype(np.float32)

    def _attention(self, prefix: str, states: Values, angles: Values) -> Values:
        """Attend causally. Shapes: (T, E) -> (T, E)."""
        config, length = self.config, len(states)
        # (T, H * D) -> (H, T, D)
        queries, keys, values = (
            self._linear(f"{prefix}.self_attn.{one}_proj", states)
            .reshape(length, -1, config.head_size)
            .swapaxes(0, 1)
            for one in "qkv"
        )
        queries, keys = _rotate(queries, angles), _rotate(keys, angles)
        shared = config.heads // config.kv_heads
        # Grouped attention: each key head serves several query heads.
        keys, values = np.repeat(keys, shared, axis=0), np.repeat(values, shared, axis=0)
        scores = queries @ keys.swapaxes(1, 2) * np.float32(1 / math.sqrt(config.head_size))
        scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        mixed = (shares @ values).swapaxes(0, 1).reshape(length, -1)
        return self._linear(f"{prefix}.self_attn.o_proj", mixed)


def _swiglu(gate: Values, up: Values) -> Values:
    return gate / (np.float32(1) + np.exp(-gate)) * up


def _rotate(states: Values, angles: Values) -> Values:
    """Turn the first half of a head against the second."""
    low, high = np.split(states, 2, axis=-1)
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([low * cosine - high * sine, high * cosine + low * sine], axis=-1)
