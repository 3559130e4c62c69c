"""A float checkpoint's forward pass in float32 numpy: what quantising is calibrated with and judged by.

All windows go through one layer before the next is read, so memory is that of one layer and of the states,
however large the model. Not here: quantised weights (``engine``), losses and tables (``evaluate``).
Source: ``modeling_baichuan.py`` (7B: RoPE, 13B: ALiBi); Hugging Face's ``LlamaForCausalLM``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
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
    layer_linears,
    layer_norms,
    layer_prefix,
)
from baichuan2_tpu.config import ModelConfig, alibi_slopes
from baichuan2_tpu.reference.operations import rms_norm, rotate, softmax, swiglu

__all__ = ["FloatModel", "attend"]

Floats = NDArray[np.float32]


class FloatModel:
    """Runs windows of equal length through the float weights, layer by layer.

    Raises: CheckpointError where a tensor cannot be read.
    """

    def __init__(self, checkpoint: FloatCheckpoint) -> None:
        self.config = checkpoint.config
        self._checkpoint = checkpoint
        self._head: Floats | None = None

    def embed(self, tokens: NDArray[np.integer[Any]]) -> Floats:
        """Return the states before the first layer. Shapes: (W, T) -> (W, T, E)."""
        # Only the rows that occur: the whole embedding of a 7B takes 2 GB in float32.
        ids, places = np.unique(tokens.ravel(), return_inverse=True)
        rows = np.concatenate([self._checkpoint.read(EMBEDDING, int(token), int(token) + 1) for token in ids])
        self._checkpoint.release(EMBEDDING)
        return rows[places.ravel()].reshape(*tokens.shape, -1)

    def run_layer(self, index: int, states: Floats) -> None:
        """Carry every window through one layer. Shapes: (W, T, E).

        Side effect: ``states`` become those behind the layer, whose weights are let go.
        """
        names = (*layer_linears(self.config, index), *layer_norms(index))
        prefix = layer_prefix(index)
        weights = {name.removeprefix(prefix): self._checkpoint.read(name) for name in names}
        for window in states:
            _run_window(self.config, weights, window)
        for name in names:
            self._checkpoint.release(name)

    def run(self, tokens: NDArray[np.integer[Any]]) -> Floats:
        """Return the states behind the last layer. Shapes: (W, T) -> (W, T, E)."""
        states = self.embed(tokens)
        for index in range(self.config.layers):
            self.run_layer(index, states)
        return states

    def logits(self, states: Floats) -> Floats:
        """Return the logits of states behind the last layer. Shapes: (T, E) -> (T, V).

        Side effect: the head stays in memory from the first call on.
        """
        if self._head is None:
            self._head = self._checkpoint.read(HEAD)
        norm = self._checkpoint.read(FINAL_NORM)
        return rms_norm(states, norm, self.config.norm_eps) @ self._head.T


def attend(config: ModelConfig, queries: Floats, keys: Floats, values: Floats) -> Floats:
    """Attend causally within one window that begins at position 0.

    Shapes: (T, H * D) and twice (T, KV * D) -> (T, H * D).
    """
    length, shared = len(queries), config.heads // config.kv_heads
    by_head = [rows.reshape(length, -1, config.head_size).swapaxes(0, 1) for rows in (queries, keys, values)]
    if config.position == "rope":
        turns = _turns(config, length)
        by_head[:2] = [rotate(heads, *turns) for heads in by_head[:2]]
    bias = _score_bias(config, length)
    mixed = np.empty((length, config.heads, config.head_size), np.float32)
    # One key head at a time, with the query heads that share it: the scores of all take 2 GB at 4096 tokens.
    for head in range(config.kv_heads):
        own = slice(head * shared, (head + 1) * shared)
        scores = by_head[0][own] @ by_head[1][head].T
        scores *= np.float32(1 / math.sqrt(config.head_size))
        scores += bias[own] if len(bias) > 1 else bias
        mixed[:, own] = (softmax(scores) @ by_head[2][head]).swapaxes(0, 1)
    return mixed.reshape(length, -1)


def _run_window(config: ModelConfig, weights: Mapping[str, Floats], states: Floats) -> None:
    """Carry one window through a layer, in place. Shapes: (T, E)."""
    inputs = rms_norm(states, weights[ATTENTION_NORM], config.norm_eps)
    mixed = attend(config, *(inputs @ weights[name].T for name in QKV))
    states += mixed @ weights[ATTENTION_OUTPUT].T
    inputs = rms_norm(states, weights[MLP_NORM], config.norm_eps)
    inner = swiglu(inputs @ weights[GATE].T, inputs @ weights[UP].T)
    states += inner @ weights[DOWN].T


def _turns(config: ModelConfig, length: int) -> tuple[Floats, Floats]:
    """Return cosine and sine of RoPE's angle of every position and pair. Shapes: (T, D / 2) both."""
    size = config.head_size
    angles = np.arange(length)[:, None] * config.rope_theta ** (-np.arange(0, size, 2) / size)
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def _score_bias(config: ModelConfig, length: int) -> Floats:
    """Return what is added to the scores: -inf on what lies ahead, and ALiBi's slopes.

    Shapes: (1, T, T), or with ALiBi (H, T, T) of which the last axis counts keys.
    """
    ahead: Floats = np.triu(np.full((1, length, length), -np.inf, np.float32), 1)
    if config.position == "rope":
        return ahead
    # The slope times the query's position is the same for a whole row and drops out of the softmax.
    slopes: Floats = np.array(alibi_slopes(config.heads), np.float32)
    rising = slopes[:, None, None] * np.arange(length, dtype=np.float32)
    return np.add(ahead, rising, dtype=np.float32)
