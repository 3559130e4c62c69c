"""The float weights of a checkpoint as 16-bit numbers, a slice of rows at a time.

A float checkpoint is read as it is, a quantised one as the floats that its integers stand for.
Not here: packed weights (``net_weights``), files.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import EMBEDDING
from baichuan2_tpu.checkpoint.packing import dequantize
from baichuan2_tpu.checkpoint.weights import PackedLinear, Weights
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.manifest import Float

__all__ = ["Source", "float_rows", "read_norm"]

Source = Weights | FloatCheckpoint
"""A quantised checkpoint, or a float one where everything is compiled with 16 bits."""

_SLICE_WEIGHTS = 1 << 20  # 4 MB as float32, for the caches: larger slices take twice as long to transpose
_ROW_MULTIPLE = 64  # a slice of packed rows begins at a word boundary
_LIMITS = {"float16": float(np.finfo(np.float16).max), "bfloat16": 3.3895313892515355e38}


def float_rows(source: Source, name: str, shape: tuple[int, int], dtype: Float) -> Iterator[NDArray[Any]]:
    """Yield a linear or the embedding in slices of rows; bfloat16 comes as its bits, in uint16.

    Shapes: ``shape`` is (N, K); each slice (R, K).
    Side effect: the source's pages are given back at the end.
    Raises: CheckpointError naming the tensor whose weights ``dtype`` cannot hold.
    """
    rows, columns = shape
    step = max(1, _SLICE_WEIGHTS // columns // _ROW_MULTIPLE) * _ROW_MULTIPLE
    tensor = None if isinstance(source, FloatCheckpoint) else _open(source, name)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        if isinstance(source, FloatCheckpoint):
            values = source.read(name, start, stop)
            source.release(name)
        elif isinstance(tensor, PackedLinear):
            values = dequantize(_rows_of(tensor, start, stop))
        else:
            assert tensor is not None  # noqa: S101 - our own invariant
            values = tensor[start:stop].astype(np.float32)
        yield _narrow(values, dtype, name)
    del tensor
    source.release(name)


def read_norm(source: Source, name: str) -> NDArray[np.float32]:
    """Return the weights of a norm. Shapes: (E,)."""
    values = source.read(name) if isinstance(source, FloatCheckpoint) else source.array(name)
    copied = np.array(values, np.float32)
    source.release(name)
    return copied


def _open(weights: Weights, name: str) -> PackedLinear | NDArray[Any]:
    return weights.array(name) if name == EMBEDDING else weights.linear(name)


def _rows_of(linear: PackedLinear, start: int, stop: int) -> PackedLinear:
    """Return some outputs of a packed layer, beginning at a word boundary."""
    words = slice(start * linear.bits // 32, stop * linear.bits // 32)
    return PackedLinear(
        qweight=linear.qweight[:, start:stop],
        qzeros=linear.qzeros[:, words],
        scales=linear.scales[:, start:stop],
        bits=linear.bits,
        group_size=linear.group_size,
    )


def _narrow(values: NDArray[np.float32], dtype: Float, name: str) -> NDArray[Any]:
    """Round to the nearest number of ``dtype``, to even between two."""
    limit = _LIMITS[dtype]
    # Comparisons with NaN are false: both ends must hold.
    if not (values.min() >= -limit and values.max() <= limit):
        worst = values.item(int(np.argmin(np.abs(values) <= limit)))
        raise CheckpointError(
            f"{name} has the weight {worst}, {dtype} holds -{limit:.5g} to {limit:.5g}; compile with --dtype "
            "bfloat16, or fetch the checkpoint again"
        )
    if dtype == "float16":
        return values.astype(np.float16)
    bits = values.view(np.uint32)
    halfway = np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))
    return ((bits + halfway) >> np.uint32(16)).astype(np.uint16)
