"""Quantise by plain rounding between each group's smallest and largest value: the usual baseline.

The package's own quantisation differs in one thing only: it searches for the best range.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import linear_bits
from baichuan2_tpu.checkpoint.packing import pack_linear
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.config import ModelConfig, QuantizationConfig

__all__ = ["RoundedWeights"]

EMBEDDING = "model.embed_tokens"


class RoundedWeights:
    """A float checkpoint, quantised tensor by tensor as it is read; see ``Weights``."""

    def __init__(self, checkpoint: FloatCheckpoint, quantization: QuantizationConfig) -> None:
        self._checkpoint = checkpoint
        self._config = replace(
            checkpoint.config, quantization=quantization, is_head_normalized=False, is_head_tied=False
        )
        self._group_size = quantization.group_size

    @property
    def config(self) -> ModelConfig:
        """Dimensions, with the quantisation."""
        return self._config

    def linear(self, name: str) -> PackedLinear:
        """Round one linear layer."""
        bits = linear_bits(self._config, name)
        integers, scales, zeros = _round_groups(self._checkpoint.read(name), bits, self._group_size)
        return pack_linear(integers, scales, zeros, bits=bits, group_size=self._group_size)

    def array(self, name: str) -> NDArray[Any]:
        """Return the embedding in float16, or a norm."""
        values = self._checkpoint.read(name)
        return values.astype(np.float16) if name == EMBEDDING else values

    def release(self, name: str) -> None:
        """Release the tensor's pages."""
        self._checkpoint.release(name)


def _round_groups(
    weights: NDArray[np.float32], bits: int, group_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
    """Round between the smallest and the largest value of a group, zero included.

    Shapes: (N, K) -> integers (N, K), scales and zeros (N, G).
    """
    rows, columns = weights.shape
    groups = -(-columns // group_size)
    padded = np.zeros((rows, groups * group_size), np.float32)
    padded[:, :columns] = weights
    grouped = padded.reshape(rows, groups, group_size)
    # Zero is in the range, so that the zero point is one of the integers.
    low, high = np.minimum(grouped.min(axis=2), 0), np.maximum(grouped.max(axis=2), 0)
    most = (1 << bits) - 1
    scales = np.maximum((high - low) / most, np.finfo(np.float16).tiny).astype(np.float16)
    steps = scales.astype(np.float32)
    # The packed form cannot hold a zero of 0; a group without negative weights loses one step.
    zeros = np.clip(np.round(-low / steps), 1, most)
    integers = np.clip(np.round(grouped / steps[:, :, None]) + zeros[:, :, None], 0, most)
    return (
        integers.astype(np.uint8).reshape(rows, -1)[:, :columns],
        scales,
        zeros.astype(np.uint8),
    )
