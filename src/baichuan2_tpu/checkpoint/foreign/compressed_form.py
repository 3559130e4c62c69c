"""Linears in the "pack-quantized" form of compressed-tensors, which LLM Compressor and vLLM write and read.

Integers are packed along the inputs, zeros along the outputs; both are signed, and stored plus half their
range. Without zeros they are symmetric. ``weight_g_idx`` has the group of every column (``actorder:
group``).
Source: ``PackedQuantizationCompressor`` and ``pack_to_int32`` of compressed-tensors 0.6 and 0.13; before 0.9
zeros were bytes, one each.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.foreign.form import (
    FLOATS,
    INTEGERS,
    LinearPlace,
    assign_groups,
    check_bits,
    check_part,
    read_order,
)
from baichuan2_tpu.checkpoint.foreign.grouped import GroupedRows
from baichuan2_tpu.checkpoint.foreign.settings import ForeignSettings
from baichuan2_tpu.checkpoint.packing import unpack_rows
from baichuan2_tpu.checkpoint.source import TensorSource
from baichuan2_tpu.checkpoint.weights import WORD_BITS

__all__ = ["CompressedForm"]

_BYTES = ("I8",)


class CompressedForm:
    """The linears of one checkpoint; see ``LinearForm``."""

    main = "weight_packed"
    parts: tuple[str, ...] = (
        "weight_packed",
        "weight_scale",
        "weight_zero_point",
        "weight_shape",
        "weight_g_idx",
    )

    def __init__(self, source: TensorSource, settings: ForeignSettings) -> None:
        self.title = settings.title
        self._source = source
        self._sizes = settings.group_sizes()

    def place(self, name: str) -> LinearPlace:
        """Check the tensors of a linear and tell its sizes and groups."""
        outputs, words = check_part(self._source, f"{name}.weight_packed", INTEGERS)
        check_part(self._source, f"{name}.weight_shape", (*INTEGERS, "I64"), (2,))
        columns = int(self._source.read(f"{name}.weight_shape")[1])
        bits = check_bits(self._source, f"{name}.weight_packed", words, columns)
        _, count = check_part(self._source, f"{name}.weight_scale", FLOATS)
        check_part(self._source, f"{name}.weight_scale", FLOATS, (outputs, count))
        zeros = self._source.tensors.get(f"{name}.weight_zero_point")
        if zeros is not None:
            rows = outputs if zeros.dtype in _BYTES else -(-outputs * bits // WORD_BITS)
            check_part(self._source, f"{name}.weight_zero_point", (*INTEGERS, *_BYTES), (rows, count))
        return LinearPlace((outputs, columns), bits, self._groups(name, columns, count))

    def read(self, name: str, start: int, stop: int) -> GroupedRows:
        """Return rows of a linear."""
        place = self.place(name)
        assert place.groups is not None  # noqa: S101 - of this form they are always known
        scales = np.ascontiguousarray(self._source.read(f"{name}.weight_scale", start, stop), np.float32)
        return GroupedRows(
            codes=unpack_rows(self._source.read(f"{name}.weight_packed", start, stop), place.bits),
            scales=scales,
            zeros=self._zeros(name, place, scales.shape[1])[start:stop],
            groups=place.groups,
            bits=place.bits,
        )

    def _groups(self, name: str, columns: int, count: int) -> NDArray[np.int64]:
        order = read_order(self._source, f"{name}.weight_g_idx", columns, count)
        if order is not None:
            return order
        # Layers may differ: the size is one of the settings that fits, or columns over scales.
        sizes = (size for size in self._sizes if -(-columns // size) == count)
        size = next(sizes, -(-columns // max(count, 1)))
        return assign_groups(self._source, f"{name}.weight_scale", columns, count=count, size=size)

    def _zeros(self, name: str, place: LinearPlace, count: int) -> NDArray[np.uint8]:
        """Return the zeros of all rows. Shapes: (N, G)."""
        key, half = f"{name}.weight_zero_point", 1 << (place.bits - 1)
        info = self._source.tensors.get(key)
        if info is None:
            return np.full((place.shape[0], count), half, np.uint8)
        stored = self._source.read(key)
        if info.dtype in _BYTES:
            return (stored.astype(np.int16) + half).astype(np.uint8)
        return np.ascontiguousarray(unpack_rows(stored.T, place.bits)[:, : place.shape[0]].T)
