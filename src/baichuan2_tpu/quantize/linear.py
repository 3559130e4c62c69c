"""Quantise one tensor of a float checkpoint: a linear to integers, anything else to a plain array.

Large tensors go by in slices of rows, so that no float copy of the whole is ever held.
Not here: the search itself (``native/quantize/range_search.h``), writing files (``shard_file``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu import _native
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.packing import pack_linear
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize.repack import repack_linear

__all__ = ["convert_array", "quantize_linear"]

_SLICE_WEIGHTS = 1 << 24  # 64 MB as float32
_LIMIT = float(np.finfo(np.float16).max)


def quantize_linear(
    checkpoint: FloatCheckpoint, name: str, shape: tuple[int, int], *, bits: int, group_size: int
) -> PackedLinear:
    """Quantise one linear of (N, K) weights to the integers of least squared error.

    Integers that another tool chose are kept where these bits and groups can hold them.
    Raises: CheckpointError naming the file, the tensor and the weight that is not finite or beyond float16.
    """
    kept = repack_linear(checkpoint, name, bits=bits, group_size=group_size)
    if kept is not None:
        return kept
    outputs, inputs = shape
    groups = -(-inputs // group_size)
    integers = np.empty((outputs, inputs), np.uint8)
    scales, zeros = np.empty((outputs, groups), np.uint16), np.empty((outputs, groups), np.uint8)
    for start, weights in _row_slices(checkpoint, name, shape):
        stop = start + weights.shape[0]
        integers[start:stop], scales[start:stop], zeros[start:stop] = _native.quantize_groups(
            weights, bits, group_size
        )
    return pack_linear(integers, scales.view(np.float16), zeros, bits=bits, group_size=group_size)


def convert_array(
    checkpoint: FloatCheckpoint, name: str, shape: tuple[int, ...], dtype: type[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    """Return an embedding or a norm in another float type.

    Raises: CheckpointError naming the file, the tensor and the value that is not finite or beyond float16.
    """
    values = np.empty(shape, dtype)
    for start, part in _row_slices(checkpoint, name, shape):
        values[start : start + part.shape[0]] = part
    return values


def _row_slices(
    checkpoint: FloatCheckpoint, name: str, shape: tuple[int, ...]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield the first row and the checked values of every slice; its pages are given back after use."""
    rows = max(1, _SLICE_WEIGHTS // math.prod(shape[1:]))
    for start in range(0, shape[0], rows):
        values = checkpoint.read(name, start, start + rows)
        _check_values(checkpoint, name, start, values)
        yield start, values
        checkpoint.release(name)


def _check_values(checkpoint: FloatCheckpoint, name: str, start: int, values: NDArray[np.float32]) -> None:
    """Check that every value is a number that float16 can hold."""
    # Comparisons with NaN are false: both ends must hold.
    if values.size == 0 or (values.min() >= -_LIMIT and values.max() <= _LIMIT):
        return
    first = int(np.argmin(np.abs(values) <= _LIMIT))
    row, column = divmod(first, values[0].size)
    raise CheckpointError(
        f"{checkpoint.describe(name)}: row {start + row}, column {column} of {name} is {values.item(first)}, "
        f"allowed is -{_LIMIT:.0f} to {_LIMIT:.0f}; fetch the checkpoint again"
    )
