"""Read one ``.safetensors`` file through a memory map, after checking every byte of its header.

Our own reader because numpy has no bfloat16 and because pages must be given back while a model streams by;
files are written with the ``safetensors`` library.
Source: the format description in the README of huggingface/safetensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.source import DTYPES, MappedFile, TensorInfo, widen
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import MOST_JSON_BYTES, parse_json
from baichuan2_tpu.quoting import quote

__all__ = ["SafetensorsFile"]

_LENGTH_BYTES = 8
_MOST_DIMENSIONS = 8
_MOST_NUMBERS = 1 << 48


class SafetensorsFile:
    """The tensors of one file; see ``TensorSource``.

    Raises: CheckpointError naming the file and the tensor when the header, an offset or the length is wrong.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = MappedFile(path)
        header, self._data_start = _read_header(self._file)
        self._spans: dict[str, tuple[int, int]] = {}
        self._tensors: dict[str, TensorInfo] = {}
        for name, entry in header.items():
            if name != "__metadata__":
                self._tensors[name], self._spans[name] = _read_entry(path, name, entry)
        _check_spans(path, self._spans, self._file.size - self._data_start)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Everything the file holds."""
        return self._tensors

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of one tensor: a view, or float32 in place of bfloat16."""
        info = self._tensors[name]
        shape, dtype = info.shape, DTYPES[info.dtype]
        if shape:
            start, stop, _ = slice(start, stop).indices(shape[0])
            shape = (stop - start, *shape[1:])
        row_bytes = math.prod(info.shape[1:]) * dtype.itemsize
        offset = self._data_start + self._spans[name][0] + start * row_bytes
        return widen(self._file.view(offset, math.prod(shape), dtype).reshape(shape), info.dtype)

    def release(self, name: str) -> None:
        """Give the tensor's pages back."""
        start, stop = self._spans[name]
        self._file.release(self._data_start + start, self._data_start + stop)

    def close(self) -> None:
        """Unmap the file once no view is left."""
        self._file.close()


def _read_header(file: MappedFile) -> tuple[dict[str, object], int]:
    """Return the header's JSON object and the offset at which the data begins."""
    length = int.from_bytes(file.bytes(0, _LENGTH_BYTES), "little")
    end = _LENGTH_BYTES + length
    if file.size < _LENGTH_BYTES or length > MOST_JSON_BYTES or end > file.size:
        raise CheckpointError(
            f"{file.path}: the header claims {length} bytes of at most {MOST_JSON_BYTES}, the file has "
            f"{file.size}; it is truncated or not a safetensors file, fetch it again"
        )
    try:
        return parse_json(file.bytes(_LENGTH_BYTES, end)), end
    except ValueError as error:
        raise CheckpointError(f"{file.path}: the header {error}; fetch the file again") from error


def _read_entry(path: Path, name: str, entry: object) -> tuple[TensorInfo, tuple[int, int]]:
    """Check one tensor's dtype, shape and offsets against each other."""
    where = f"{path}: tensor {quote(name)}"
    if not isinstance(entry, dict):
        raise CheckpointError(f"{where}: its header entry is {quote(entry)}, allowed is an object")
    values = cast("dict[str, object]", entry)
    dtype, shape = values.get("dtype"), _sizes(values.get("shape"))
    offsets = _sizes(values.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CheckpointError(f"{where}: dtype is {quote(dtype)}, allowed are {', '.join(DTYPES)}")
    if shape is None or offsets is None or len(offsets) != 2:
        raise CheckpointError(
            f"{where}: its shape or offsets are malformed ({quote(values)}); fetch the file again"
        )
    if len(shape) > _MOST_DIMENSIONS or math.prod(max(size, 1) for size in shape) > _MOST_NUMBERS:
        raise CheckpointError(f"{where}: has the shape {quote(list(shape))}, which no model has")
    needed = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != needed:
        raise CheckpointError(
            f"{where}: shape {shape} of {dtype} needs {needed} bytes, its offsets hold "
            f"{offsets[1] - offsets[0]}; fetch the file again"
        )
    return TensorInfo(shape, dtype, path), (offsets[0], offsets[1])


def _sizes(value: object) -> tuple[int, ...] | None:
    """Return a list of non-negative integers, or None for anything else."""
    if not isinstance(value, list):
        return None
    items = cast("list[object]", value)
    sizes = tuple(
        item for item in items if isinstance(item, int) and not isinstance(item, bool) and item >= 0
    )
    return sizes if len(sizes) == len(items) else None


def _check_spans(path: Path, spans: Mapping[str, tuple[int, int]], available: int) -> None:
    """Check that the tensors fill the data exactly: no overlap, no hole, nothing behind the end."""
    end = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if stop > available:
            raise CheckpointError(
                f"{path}: tensor {quote(name)} ends at byte {stop} of the data, the file holds {available}; "
                "it is truncated, fetch it again"
            )
        if start != end:
            problem = "overlaps the tensor before it" if start < end else "leaves a hole before it"
            raise CheckpointError(
                f"{path}: tensor {quote(name)} {problem} (byte {start}, expected {end}); fetch it again"
            )
        end = stop
    if end != available:
        raise CheckpointError(f"{path}: {available - end} bytes belong to no tensor; fetch the file again")
