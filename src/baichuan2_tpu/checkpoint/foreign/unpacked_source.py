"""Packed linears of another tool as if they were float tensors, one at a time; see ``TensorSource``.

Not here: the forms (``gptq_form`` and its neighbours), what a model needs (``layout``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.foreign.form import LinearForm, LinearPlace
from baichuan2_tpu.checkpoint.foreign.grouped import GroupedRows
from baichuan2_tpu.checkpoint.source import TensorInfo, TensorSource

__all__ = ["UnpackedSource"]

_WEIGHT = ".weight"


class UnpackedSource:
    """The tensors of a checkpoint, each packed linear as one float tensor ``NAME.weight``.

    Raises: CheckpointError when the tensors of a linear do not fit each other.
    """

    def __init__(self, source: TensorSource, form: LinearForm) -> None:
        self.title = form.title
        self._source, self._form = source, form
        ending = f".{form.main}"
        names = [name.removesuffix(ending) for name in source.tensors if name.endswith(ending)]
        self._places = {name: form.place(name) for name in names}
        self._parts = {
            name: tuple(part for part in (f"{name}.{part}" for part in form.parts) if part in source.tensors)
            for name in names
        }
        self._tensors = self._list_tensors()

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """The plain tensors, and the packed ones as float32."""
        return self._tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of one tensor; those of a packed linear in float32."""
        linear = name.removesuffix(_WEIGHT)
        if linear not in self._places:
            return self._source.read(name, start, stop)
        rows = self._form.read(linear, *self._bounds(linear, start, stop))
        return rows.dequantize() if isinstance(rows, GroupedRows) else rows

    def read_grouped(self, name: str, start: int = 0, stop: int | None = None) -> GroupedRows | None:
        """Return rows of a packed linear as integers; None for a tensor that is stored as floats."""
        linear = name.removesuffix(_WEIGHT)
        if linear not in self._places:
            return None
        rows = self._form.read(linear, *self._bounds(linear, start, stop))
        return rows if isinstance(rows, GroupedRows) else None

    def place(self, name: str) -> LinearPlace | None:
        """Return what is known of a packed linear; None for a tensor that is not packed."""
        return self._places.get(name.removesuffix(_WEIGHT))

    def release(self, name: str) -> None:
        """Give the pages of a tensor back, or those of all that a packed linear consists of."""
        for part in self._parts.get(name.removesuffix(_WEIGHT), (name,)):
            self._source.release(part)

    def _bounds(self, linear: str, start: int, stop: int | None) -> tuple[int, int]:
        return slice(start, stop).indices(self._places[linear].shape[0])[:2]

    def _list_tensors(self) -> dict[str, TensorInfo]:
        packed = {part for parts in self._parts.values() for part in parts}
        tensors = {name: info for name, info in self._source.tensors.items() if name not in packed}
        for name, place in self._places.items():
            file = self._source.tensors[f"{name}.{self._form.main}"].file
            tensors[f"{name}{_WEIGHT}"] = TensorInfo(place.shape, "F32", file)
        return tensors
