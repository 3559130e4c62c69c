"""One way to read tensors, whatever the file: names, shapes, and one tensor at a time as a numpy array.

Not here: the formats themselves (``formats``), what a model needs (``layout``).
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import open_regular

__all__ = ["DTYPES", "MappedFile", "TensorInfo", "TensorSource", "widen"]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),  # numpy has no bfloat16; see ``widen``
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "F8_E4M3": np.dtype("u1"),  # these two are told apart to be refused by name
    "F8_E5M2": np.dtype("u1"),
}
"""The element types that checkpoints of this family use, by the names safetensors gives them."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor before it is read; ``dtype`` is a key of ``DTYPES``, or the GGUF type."""

    shape: tuple[int, ...]
    dtype: str
    file: Path


class TensorSource(Protocol):
    """Tensors by name, read one at a time."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Everything the checkpoint holds."""
        ...

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows ``start`` to ``stop`` of one tensor; bfloat16 comes as float32.

        Side effect: the pages read stay in memory until ``release(name)``.
        """
        ...

    def release(self, name: str) -> None:
        """Let the memory behind ``name`` go; it can be read again."""
        ...


class MappedFile:
    """A read-only file in memory: arrays are views of its pages, and pages can be given back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open_regular(path) as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # mmap refuses an empty file with ValueError
            raise CheckpointError(f"{path}: cannot be read ({error}); fetch the file again") from error
        self.size = len(self._map)

    def bytes(self, start: int, stop: int) -> bytes:
        """Return a copy of a byte range."""
        return self._map[start:stop]

    def view(self, start: int, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return a view of ``count`` elements that begin at byte ``start``, which may lie unaligned."""
        return np.frombuffer(self._map, dtype, count, start)

    def release(self, start: int, stop: int) -> None:
        """Give the pages of a byte range back; a later access reads them again."""
        start -= start % mmap.PAGESIZE
        self._map.madvise(mmap.MADV_DONTNEED, start, stop - start)

    def close(self) -> None:
        """Unmap the file, unless a view is alive: then the map goes with the last view."""
        try:
            self._map.close()
        except BufferError:
            return


def widen(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Turn the bits of bfloat16 into float32; anything else is returned as it is, or copied if unaligned.

    Call it only on the rows that are needed: a copy of the whole embedding per slice is slow and takes 1 GB.
    """
    if dtype != "BF16":
        return np.require(array, requirements="A")
    return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
