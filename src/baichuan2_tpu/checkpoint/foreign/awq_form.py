"""Linears in the "gemm" form of AutoAWQ: integers and zeros packed along the outputs, in their own order.

Source: ``WQLinear_GEMM.from_linear`` of AutoAWQ 0.2 (``order_map``), ``reverse_awq_order`` of
``awq/utils/packing_utils.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.foreign.form import (
    FLOATS,
    INTEGERS,
    LinearPlace,
    assign_groups,
    check_part,
)
from baichuan2_tpu.checkpoint.foreign.grouped import GroupedRows
from baichuan2_tpu.checkpoint.foreign.settings import ForeignSettings
from baichuan2_tpu.checkpoint.packing import unpack_rows
from baichuan2_tpu.checkpoint.source import TensorSource

__all__ = ["AwqForm"]

_BITS = 4
_PER_WORD = 8
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""Of a word's eight integers, from the lowest bits: the place of output 0, 1, … 7 among them."""


class AwqForm:
    """The linears of one checkpoint; see ``LinearForm``."""

    main = "qweight"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales")

    def __init__(self, source: TensorSource, settings: ForeignSettings) -> None:
        self.title = settings.title
        self._source = source
        self._group_size = settings.group_size()

    def place(self, name: str) -> LinearPlace:
        """Check the tensors of a linear and tell its sizes and groups."""
        columns, words = check_part(self._source, f"{name}.qweight", INTEGERS)
        outputs = words * _PER_WORD
        count, _ = check_part(self._source, f"{name}.scales", FLOATS)
        check_part(self._source, f"{name}.scales", FLOATS, (count, outputs))
        check_part(self._source, f"{name}.qzeros", INTEGERS, (count, words))
        groups = assign_groups(self._source, f"{name}.scales", columns, count=count, size=self._group_size)
        return LinearPlace((outputs, columns), _BITS, groups)

    def read(self, name: str, start: int, stop: int) -> GroupedRows:
        """Return rows of a linear."""
        place = self.place(name)
        assert place.groups is not None  # noqa: S101 - of this form they are always known
        first = start // _PER_WORD
        words = slice(first, -(-stop // _PER_WORD))
        rows = slice(start - first * _PER_WORD, stop - first * _PER_WORD)
        scales = self._source.read(f"{name}.scales")[:, start:stop]
        return GroupedRows(
            codes=_unpack(self._source.read(f"{name}.qweight")[:, words])[rows],
            scales=np.ascontiguousarray(scales.T, np.float32),
            zeros=_unpack(self._source.read(f"{name}.qzeros")[:, words])[rows],
            groups=place.groups,
            bits=_BITS,
        )


def _unpack(words: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the integers of words, with the outputs outside. Shapes: (R, W) → (W * 8, R)."""
    values = unpack_rows(words, _BITS).reshape(words.shape[0], words.shape[1], _PER_WORD)
    return np.ascontiguousarray(values[:, :, _PLACES].reshape(words.shape[0], -1).T)
