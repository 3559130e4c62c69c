"""Linears in the form of AutoGPTQ: integers packed along the inputs, zeros along the outputs.

Written by AutoGPTQ, GPTQModel, AutoRound and transformers. Zeros are stored minus one (format "gptq") or as
they are ("gptq_v2"); ``g_idx`` has the group of every column, in any order (``desc_act``).
Not here: our own use of this form (``packing``, ``quantized_checkpoint``).
Source: ``QuantLinear.pack`` of AutoGPTQ 0.7; ``convert_gptq_v1_to_v2_format`` of GPTQModel 2.0.
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

__all__ = ["GptqForm"]

_OFFSETS = {"gptq": 1, "gptq_v2": 0}
"""What is taken off a zero before it is stored."""

_DEFAULT_BITS = 4


class GptqForm:
    """The linears of one checkpoint; see ``LinearForm``."""

    main = "qweight"
    parts: tuple[str, ...] = ("qweight", "qzeros", "scales", "g_idx")

    def __init__(self, source: TensorSource, settings: ForeignSettings) -> None:
        self._source, self._settings = source, settings
        settings.bits()  # others than 4 and 8 are refused by what the settings say, not by sizes
        self._group_size = settings.group_size()
        label = settings.text("checkpoint_format", "gptq")
        self._offset = self._find_offset(_OFFSETS[label])
        is_mislabelled = self._offset != _OFFSETS[label]
        self.title = (
            f"{settings.title} whose zeros are not those of {label}" if is_mislabelled else settings.title
        )

    def place(self, name: str) -> LinearPlace:
        """Check the tensors of a linear and tell its sizes and groups."""
        words, outputs = check_part(self._source, f"{name}.qweight", INTEGERS)
        columns = self._columns(name, words)
        bits = check_bits(self._source, f"{name}.qweight", words, columns)
        count, _ = check_part(self._source, f"{name}.scales", FLOATS)
        check_part(self._source, f"{name}.scales", FLOATS, (count, outputs))
        check_part(self._source, f"{name}.qzeros", INTEGERS, (count, -(-outputs * bits // WORD_BITS)))
        return LinearPlace((outputs, columns), bits, self._groups(name, columns, count))

    def read(self, name: str, start: int, stop: int) -> GroupedRows:
        """Return rows of a linear."""
        place = self.place(name)
        assert place.groups is not None  # noqa: S101 - of this form they are always known
        words = self._source.read(f"{name}.qweight")[:, start:stop]
        scales = self._source.read(f"{name}.scales")[:, start:stop]
        return GroupedRows(
            codes=unpack_rows(words.T, place.bits),
            scales=np.ascontiguousarray(scales.T, np.float32),
            zeros=np.ascontiguousarray(self._zeros(name, place.bits)[:, start:stop].T),
            groups=place.groups,
            bits=place.bits,
        )

    def _columns(self, name: str, words: int) -> int:
        """Return the inputs of a linear: the length of its g_idx, or what the words hold.

        Layers may have other bits than the settings say: a zero takes as many as a weight.
        """
        index = self._source.tensors.get(f"{name}.g_idx")
        if index is not None and len(index.shape) == 1:
            return index.shape[0]
        count, outputs = check_part(self._source, f"{name}.scales", FLOATS)
        _, zero_words = check_part(self._source, f"{name}.qzeros", INTEGERS)
        bits = zero_words * WORD_BITS // outputs if count * outputs else 0
        return words * WORD_BITS // (bits or _DEFAULT_BITS)

    def _groups(self, name: str, columns: int, count: int) -> NDArray[np.int64]:
        order = read_order(self._source, f"{name}.g_idx", columns, count)
        if order is not None:
            return order
        return assign_groups(self._source, f"{name}.scales", columns, count=count, size=self._group_size)

    def _zeros(self, name: str, bits: int) -> NDArray[np.uint8]:
        """Return the zeros of all groups and rows. Shapes: (G, N)."""
        stored = unpack_rows(self._source.read(f"{name}.qzeros"), bits)
        return (stored + np.uint8(self._offset)) & np.uint8((1 << bits) - 1)

    def _find_offset(self, labelled: int) -> int:
        """Tell whether zeros are stored minus one; symmetric ones show it, whatever the label says."""
        name = next(
            name.removesuffix(".qweight") for name in self._source.tensors if name.endswith(".qweight")
        )
        if not self._settings.flag("sym") or f"{name}.qzeros" not in self._source.tensors:
            return labelled
        place = self.place(name)
        stored = unpack_rows(self._source.read(f"{name}.qzeros"), place.bits)[:, : place.shape[0]]
        middle = 1 << (place.bits - 1)
        return next((offset for offset in (1, 0) if (stored == middle - offset).all()), labelled)
