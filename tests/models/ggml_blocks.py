"""Blocks of ggml's quantised types: random ones, and what each stands for, worked out number by number.

Source: the structs of ``ggml-common.h`` and the ``dequantize_row_…`` functions of ``ggml-quants.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

__all__ = ["BLOCK_KINDS", "random_blocks", "unpack_blocks"]

Kind = GGMLQuantizationType
Unpack = Callable[[bytes], list[float]]


@dataclass(frozen=True)
class BlockKind:
    """Where the float16 steps of a block lie, how large they are, and how to unpack it."""

    steps: dict[int, float]
    unpack: Unpack


def half(block: bytes, offset: int) -> float:
    return struct.unpack_from("<e", block, offset)[0]


def q4_0(block: bytes) -> list[float]:
    d, qs = half(block, 0), block[2:]
    return [d * ((q & 15) - 8) for q in qs] + [d * ((q >> 4) - 8) for q in qs]


def q4_1(block: bytes) -> list[float]:
    d, m, qs = half(block, 0), half(block, 2), block[4:]
    return [d * (q & 15) + m for q in qs] + [d * (q >> 4) + m for q in qs]


def fifth_bits(high: bytes, qs: bytes) -> list[int]:
    bits = int.from_bytes(high, "little")
    low = [q & 15 for q in qs] + [q >> 4 for q in qs]
    return [q | (bits >> place & 1) << 4 for place, q in enumerate(low)]


def q5_0(block: bytes) -> list[float]:
    return [half(block, 0) * (q - 16) for q in fifth_bits(block[2:6], block[6:])]


def q5_1(block: bytes) -> list[float]:
    return [half(block, 0) * q + half(block, 2) for q in fifth_bits(block[4:8], block[8:])]


def q8_0(block: bytes) -> list[float]:
    return [half(block, 0) * q for q in struct.unpack("<32b", block[2:])]


def q2_k(block: bytes) -> list[float]:
    scales, qs, d, least = block[:16], block[16:80], half(block, 80), half(block, 82)
    values = []
    for place in range(256):
        part, inside = divmod(place, 128)
        q = qs[32 * part + inside % 32] >> 2 * (inside // 32) & 3
        scale = scales[place // 16]
        values.append(d * (scale & 15) * q - least * (scale >> 4))
    return values


def q3_k(block: bytes) -> list[float]:
    high, qs, scales, d = block[:32], block[32:96], block[96:108], half(block, 108)
    values = []
    for place in range(256):
        part, inside = divmod(place, 128)
        q = qs[32 * part + inside % 32] >> 2 * (inside // 32) & 3
        q -= 0 if high[inside % 32] >> place // 32 & 1 else 4
        j = place // 16
        scale = scales[j] & 15 if j < 8 else scales[j - 8] >> 4
        scale |= (scales[8 + j % 4] >> 2 * (j // 4) & 3) << 4
        values.append(d * (scale - 32) * q)
    return values


def scale_and_least(scales: bytes, j: int) -> tuple[int, int]:
    if j < 4:
        return scales[j] & 63, scales[j + 4] & 63
    high = scales[j - 4] >> 6 << 4, scales[j] >> 6 << 4
    return scales[j + 4] & 15 | high[0], scales[j + 4] >> 4 | high[1]


def q4_k(block: bytes, high: bytes = bytes(32), start: int = 16) -> list[float]:
    d, least, scales, qs = half(block, 0), half(block, 2), block[4:16], block[start:]
    values = []
    for place in range(256):
        part, inside = divmod(place, 64)
        byte = qs[32 * part + inside % 32]
        q = (byte & 15 if inside < 32 else byte >> 4) + 16 * (high[inside % 32] >> place // 32 & 1)
        scale, offset = scale_and_least(scales, place // 32)
        values.append(d * scale * q - least * offset)
    return values


def q5_k(block: bytes) -> list[float]:
    return q4_k(block, block[16:48], 48)


def q6_k(block: bytes) -> list[float]:
    low, high, scales = block[:128], block[128:192], struct.unpack("<16b", block[192:208])
    d = half(block, 208)
    values = []
    for place in range(256):
        part, inside = divmod(place, 128)
        quarter, column = divmod(inside, 32)
        byte = low[64 * part + column + 32 * (quarter % 2)]
        q = byte & 15 if quarter < 2 else byte >> 4
        q |= (high[32 * part + column] >> 2 * quarter & 3) << 4
        values.append(d * scales[place // 16] * (q - 32))
    return values


BLOCK_KINDS = {
    Kind.Q4_0: BlockKind({0: 0.02}, q4_0),
    Kind.Q4_1: BlockKind({0: 0.02, 2: -0.15}, q4_1),
    Kind.Q5_0: BlockKind({0: 0.01}, q5_0),
    Kind.Q5_1: BlockKind({0: 0.01, 2: -0.15}, q5_1),
    Kind.Q8_0: BlockKind({0: 0.0015}, q8_0),
    Kind.Q2_K: BlockKind({80: 0.01, 82: 0.015}, q2_k),
    Kind.Q3_K: BlockKind({108: 0.002}, q3_k),
    Kind.Q4_K: BlockKind({0: 0.0005, 2: 0.004}, q4_k),
    Kind.Q5_K: BlockKind({0: 0.00025, 2: 0.004}, q5_k),
    Kind.Q6_K: BlockKind({208: 0.00005}, q6_k),
}


def random_blocks(kind: Kind, shape: tuple[int, int], seed: int) -> NDArray[np.uint8]:
    """Return (rows, bytes) of a matrix of random blocks with sensible steps."""
    random = np.random.default_rng(seed)
    per_block, block_bytes = GGML_QUANT_SIZES[kind]
    count = shape[0] * shape[1] // per_block
    blocks = random.integers(0, 256, (count, block_bytes), np.uint8)
    for offset, step in BLOCK_KINDS[kind].steps.items():
        steps = (step * random.uniform(0.5, 1.5, count)).astype("<f2")
        blocks[:, offset : offset + 2] = steps.view(np.uint8).reshape(count, 2)
    return blocks.reshape(shape[0], -1)


def unpack_blocks(kind: Kind, blocks: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the floats that (rows, bytes) of blocks stand for."""
    size = GGML_QUANT_SIZES[kind][1]
    unpacked = [BLOCK_KINDS[kind].unpack(bytes(block)) for block in blocks.reshape(-1, size)]
    return np.array(unpacked, np.float32).reshape(blocks.shape[0], -1)
