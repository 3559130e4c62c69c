"""Packing of integers in GPTQ form, and the float weights that a packed linear layer stands for.

Not here: choosing the integers (``quantize``).
Source: AutoGPTQ's ``QuantLinear.pack`` (format "gptq"): low bits first, zeros stored minus one.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.weights import WORD_BITS, PackedLinear

__all__ = ["dequantize", "pack_linear", "shift_zeros", "unpack_linear", "unpack_rows", "unpack_zeros"]


def pack_linear(
    integers: NDArray[np.uint8],
    scales: NDArray[np.float16],
    zeros: NDArray[np.uint8],
    *,
    bits: int,
    group_size: int,
) -> PackedLinear:
    """Pack one linear layer; K must be a multiple of ``32 / bits``.

    A zero of 0 wraps around to 2^bits - 1, as our readers undo it; others may take it for 2^bits, so
    ``quantize`` chooses zeros from 1.
    Shapes: integers (N, K); scales and zeros (N, G) with G = ceil(K / group_size).
    """
    stored = (np.ascontiguousarray(zeros.T) - np.uint8(1)) & np.uint8((1 << bits) - 1)
    return PackedLinear(
        qweight=np.ascontiguousarray(_pack_rows(integers, bits).T),
        qzeros=_pack_rows(stored, bits),
        scales=np.ascontiguousarray(scales.T),
        bits=bits,
        group_size=group_size,
    )


def unpack_linear(linear: PackedLinear) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the integers and zeros of a packed layer.

    Shapes: (N, K) and (N, G).
    """
    return unpack_rows(np.ascontiguousarray(linear.qweight.T), linear.bits), unpack_zeros(linear)


def unpack_zeros(linear: PackedLinear) -> NDArray[np.uint8]:
    """Return the zeros alone of a packed layer.

    Shapes: (N, G).
    """
    mask = np.uint8((1 << linear.bits) - 1)
    zeros = (unpack_rows(linear.qzeros, linear.bits) + np.uint8(1)) & mask
    return np.ascontiguousarray(zeros.T)


def shift_zeros(words: NDArray[np.int32], bits: int, step: Literal[-1, 1]) -> NDArray[np.int32]:
    """Add ``step`` to every packed zero, within its bits: between the two ways in which files hold zeros."""
    packed = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return (packed + np.uint8(step & 255)).view("<i4")
    low = (packed + np.uint8(step & 15)) & np.uint8(15)
    return (low | (packed + np.uint8((step & 15) << 4)) & np.uint8(240)).view("<i4")


def dequantize(linear: PackedLinear) -> NDArray[np.float32]:
    """Return the float weights that a packed layer stands for.

    Shapes: (N, K).
    """
    integers, zeros = unpack_linear(linear)
    inputs, size = integers.shape[1], linear.group_size
    steps = integers.astype(np.float32) - np.repeat(zeros.astype(np.float32), size, axis=1)[:, :inputs]
    return steps * np.repeat(linear.scales.T.astype(np.float32), size, axis=1)[:, :inputs]


def _pack_rows(values: NDArray[np.uint8], bits: int) -> NDArray[np.int32]:
    """Pack along the last axis, which little-endian bytes do for free at 8 bits."""
    if bits == 4:
        values = values[:, 0::2] | (values[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(values).view("<i4")


def unpack_rows(words: NDArray[np.int32], bits: int) -> NDArray[np.uint8]:
    """Return the integers that words of 32 bits hold, the lowest bits first.

    Shapes: (R, W) → (R, W * 32 / bits).
    """
    packed = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    if bits == 8:
        return packed
    values = np.empty((words.shape[0], words.shape[1] * WORD_BITS // bits), np.uint8)
    values[:, 0::2] = packed & np.uint8(15)
    values[:, 1::2] = packed >> np.uint8(4)
    return values
