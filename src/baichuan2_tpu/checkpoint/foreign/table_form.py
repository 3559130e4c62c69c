"""Linears in 4 bits of bitsandbytes (NF4, FP4): a table of 16 floats, and a largest value for every block.

The largest values may be rounded to 8 bits themselves (double quantisation). Such weights are not integers
with a scale, so they are dequantised. They are stored in two ways: the official Baichuan2 -4bits checkpoints
pickle a list per tensor, whose items are called ``weight.quant_state.0`` and so on here; transformers writes
tensors, and JSON.
Source: ``quantizer.py`` of Baichuan2-7B-Chat-4bits; ``quantize_4bit`` of bitsandbytes 0.41 and
``QuantState.as_dict`` of 0.43. The upper half of a byte is the first of two weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.foreign.form import FLOATS, LinearPlace, check_part
from baichuan2_tpu.checkpoint.source import TensorSource
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import parse_json
from baichuan2_tpu.quoting import quote

__all__ = ["TableForm", "pickled_table_form", "stored_table_form"]

_BITS = 4
_TABLE_SIZE, _NESTED_SIZE = 16, 256
_MOST_SIZE = 1 << 20
_MOST_BLOCK = 1 << 16
_MOST_STATE_BYTES = 1 << 12
_PICKLED_PARTS = tuple(
    f"weight.quant_state.{place}" for place in ("0", "1", "3", "4.0", "4.1.0", "4.1.1", "4.1.2", "6")
)
_KINDS = ("nf4", "fp4")
_STORED_PARTS = (
    *(f"weight.{name}" for name in ("absmax", "quant_map", "nested_absmax", "nested_quant_map")),
    *(f"weight.quant_state.bitsandbytes__{kind}" for kind in _KINDS),
    "weight",
)


@dataclass(frozen=True, slots=True)
class _Nested:
    """How largest values are rounded: the names of their own largest values and table, and two numbers."""

    maxima: str
    table: str
    block: int
    offset: float


@dataclass(frozen=True, slots=True)
class _Linear:
    """The sizes of a linear, and the names of its parts."""

    shape: tuple[int, int]
    block: int
    data: str
    maxima: str
    table: str
    nested: _Nested | None


class TableForm:
    """The linears of one checkpoint; see ``LinearForm``."""

    def __init__(
        self, source: TensorSource, title: str, parts: tuple[str, ...], find: Callable[[str], _Linear]
    ) -> None:
        self.title = title
        self.main, self.parts = parts[0], parts
        self._source, self._find = source, find

    def place(self, name: str) -> LinearPlace:
        """Check the tensors of a linear and tell its sizes."""
        linear = self._find(name)
        rows, columns = linear.shape
        is_plausible = 0 < rows <= _MOST_SIZE and 0 < columns <= _MOST_SIZE and columns % 2 == 0
        if not is_plausible or not 0 < linear.block <= _MOST_BLOCK:
            raise self._error(linear.data, f"has the shape {linear.shape} in blocks of {linear.block}")
        blocks = -(-rows * columns // linear.block)
        self._check_size(linear.data, ("U8",), rows * columns // 2)
        self._check_size(linear.table, FLOATS, _TABLE_SIZE)
        self._check_size(linear.maxima, ("U8",) if linear.nested else FLOATS, blocks)
        if linear.nested is not None:
            if not 0 < linear.nested.block <= _MOST_BLOCK:
                raise self._error(linear.data, f"has largest values in blocks of {linear.nested.block}")
            self._check_size(linear.nested.maxima, FLOATS, -(-blocks // linear.nested.block))
            self._check_size(linear.nested.table, FLOATS, _NESTED_SIZE)
        return LinearPlace(linear.shape, _BITS, None)

    def read(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Return rows of a linear."""
        linear = self._find(name)
        columns = linear.shape[1]
        first, last = start * columns, stop * columns
        packed = self._source.read(linear.data).reshape(-1)[first // 2 : last // 2]
        codes = np.stack([packed >> np.uint8(4), packed & np.uint8(15)], axis=1).reshape(-1)
        maxima = self._read_maxima(linear)[first // linear.block : -(-last // linear.block)]
        factors = np.repeat(maxima, linear.block)[first % linear.block :][: codes.size]
        return (self._read_floats(linear.table)[codes] * factors).reshape(stop - start, columns)

    def _read_maxima(self, linear: _Linear) -> NDArray[np.float32]:
        """Return the largest value of every block."""
        if linear.nested is None:
            return self._read_floats(linear.maxima)
        stored = self._source.read(linear.maxima).reshape(-1)
        factors = np.repeat(self._read_floats(linear.nested.maxima), linear.nested.block)[: stored.size]
        values = self._read_floats(linear.nested.table)[stored] * factors
        return values + np.float32(linear.nested.offset)

    def _read_floats(self, name: str) -> NDArray[np.float32]:
        return self._source.read(name).reshape(-1).astype(np.float32)

    def _check_size(self, name: str, dtypes: tuple[str, ...], count: int) -> None:
        """Check the type of a tensor of any shape, and how many values it has."""
        info = self._source.tensors.get(name)
        shape = check_part(self._source, name, dtypes, info.shape if info else ())
        if math.prod(shape) != count:
            raise self._error(name, f"has {math.prod(shape)} values, {count} are expected")

    def _error(self, name: str, problem: str) -> CheckpointError:
        info = self._source.tensors.get(name)
        where = "" if info is None else f"{info.file}: "
        return CheckpointError(f"{where}tensor {quote(name)} {problem}; fetch the checkpoint again")


def pickled_table_form(source: TensorSource, title: str) -> TableForm:
    """Return the form of the official -4bits checkpoints."""

    def find(name: str) -> _Linear:
        state, nested = f"{name}.weight.quant_state", None
        rows, columns = _read_numbers(source, f"{state}.1", 2)
        if f"{state}.4.1.0" in source.tensors:
            check_part(source, f"{state}.4.0", FLOATS, ())
            nested = _Nested(
                f"{state}.4.1.0",
                f"{state}.4.1.1",
                _read_numbers(source, f"{state}.4.1.2", 1)[0],
                float(source.read(f"{state}.4.0")),
            )
        block = _read_numbers(source, f"{state}.3", 1)[0]
        return _Linear((rows, columns), block, f"{name}.weight.data", f"{state}.0", f"{state}.6", nested)

    return TableForm(source, title, ("weight.data", *_PICKLED_PARTS), find)


def stored_table_form(source: TensorSource, title: str) -> TableForm:
    """Return the form of transformers, whose numbers are JSON in a tensor of bytes."""

    def find(name: str) -> _Linear:
        weight, nested = f"{name}.weight", None
        state = _read_state(source, weight)
        if f"{weight}.nested_absmax" in source.tensors:
            block, offset = _number(state, "nested_blocksize"), state.get("nested_offset")
            parts = f"{weight}.nested_absmax", f"{weight}.nested_quant_map"
            nested = _Nested(*parts, block, float(offset) if isinstance(offset, int | float) else math.nan)
        block, parts = _number(state, "blocksize"), (f"{weight}.absmax", f"{weight}.quant_map")
        return _Linear(_shape(state), block, weight, *parts, nested)

    return TableForm(source, title, _STORED_PARTS, find)


def _read_numbers(source: TensorSource, name: str, count: int) -> list[int]:
    """Return whole numbers that stand in a pickle.

    Raises: CheckpointError when there are not so many.
    """
    check_part(source, name, ("I64",), (count,))
    return [int(number) for number in source.read(name)]


def _read_state(source: TensorSource, weight: str) -> dict[str, object]:
    """Return what the JSON beside a weight says.

    Raises: CheckpointError where there is none, and for one that is no JSON.
    """
    names = [f"{weight}.quant_state.bitsandbytes__{kind}" for kind in _KINDS]
    name = next((name for name in names if name in source.tensors), names[0])
    info = source.tensors.get(name)
    check_part(source, name, ("U8",), info.shape if info else ())
    try:
        return parse_json(source.read(name).reshape(-1)[:_MOST_STATE_BYTES].tobytes())
    except ValueError as error:
        raise CheckpointError(f"tensor {quote(name)} {error}; fetch the checkpoint again") from error


def _shape(state: dict[str, object]) -> tuple[int, int]:
    """Return the rows and columns that the JSON names, or zeros, which are no sizes."""
    match state.get("shape"):
        case [int(rows), int(columns)]:
            return rows, columns
        case _:
            return 0, 0


def _number(state: dict[str, object], key: str) -> int:
    """Return a whole number of the JSON, or 0, which is no size."""
    value = state.get(key)
    return value if isinstance(value, int) else 0
