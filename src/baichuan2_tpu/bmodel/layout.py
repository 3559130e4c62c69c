"""How a .bmodel file is laid out: a header, a flatbuffer that describes every net, and data it points into.

Read without the vendor's library, which aborts on a damaged file. Not here: which fields there are
(``fields``), what they are read for (``header``) or changed for (``weights``).
Source: ``bmodel.fbs`` and ``bmodel.hpp`` of tpu_mlir 1.30.2; https://flatbuffers.dev/internals.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from baichuan2_tpu.errors import ArtifactError
from baichuan2_tpu.files import open_regular

__all__ = ["BINARY", "BmodelEnvelope", "Table"]

BINARY = struct.Struct("<QQ")
"""Start and size of a piece of data; the start counts from the flatbuffer's end."""

_MAGIC = 0xFF55AAEE
_HEADER = struct.Struct("<IIIQ")  # magic, bytes of the header, of the flatbuffer, of the data
_HEADER_BYTES = 64

# A 13B has 90 nets with 10,000 tables, 1 MB of them. Damaged ones can lead to each other without end.
_MOST_DESCRIPTION_BYTES = 32 << 20
_MOST_ELEMENTS = 1_000_000
_MOST_CONTENT_BYTES = 4096


@dataclass(frozen=True, slots=True)
class BmodelEnvelope:
    """The header and the flatbuffer of a file. Units: ``base`` is where the data begins in the file."""

    rest_of_header: bytes
    buffer: bytearray
    base: int
    data_bytes: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read both and check that the file is as long as its header says.

        Raises: ArtifactError when it is not a bmodel, cut short or cannot be read.
        """
        try:
            with open_regular(path) as file:
                head = file.read(_HEADER_BYTES)
                magic, header_bytes, length, data_bytes = _HEADER.unpack_from(head.ljust(_HEADER.size, b"\0"))
                if magic != _MAGIC or header_bytes != _HEADER_BYTES:
                    raise ArtifactError(f"{path}: is not a bmodel; name a file made by baichuan2 compile")
                nbytes = os.fstat(file.fileno()).st_size
                if length > _MOST_DESCRIPTION_BYTES:
                    raise ArtifactError(
                        f"{path}: its description has {length} bytes, at most {_MOST_DESCRIPTION_BYTES} are "
                        "allowed; copy the file again"
                    )
                buffer = bytearray(file.read(length))
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror or error})") from error
        base = _HEADER_BYTES + length
        if nbytes < base + data_bytes:
            raise ArtifactError(
                f"{path}: has {nbytes} bytes, its header says {base + data_bytes}; copy the file again"
            )
        return cls(head[_HEADER.size :], buffer, base, data_bytes)

    @property
    def root(self) -> Table:
        """The table that describes the whole model, and counts what is read through it."""
        return Table(self.buffer, _read(self.buffer, 0, "<I"), _Budget())

    def head(self, file_bytes: int) -> bytes:
        """Return header and flatbuffer, as they are now, for a file of that size."""
        header = _HEADER.pack(_MAGIC, _HEADER_BYTES, len(self.buffer), file_bytes - self.base)
        return header + self.rest_of_header + bytes(self.buffer)


@dataclass(slots=True)
class _Budget:
    """How many elements of vectors may still be read: tables that share vectors multiply them."""

    elements: int = _MOST_ELEMENTS

    def take(self, count: int) -> None:
        self.elements -= count
        if self.elements < 0:
            raise struct.error(f"more than {_MOST_ELEMENTS} elements")


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a flatbuffer; a field that is absent reads as 0, as empty or as None.

    Raises: struct.error where an offset leads out of the buffer, or a vector is longer than any model's.
    """

    buffer: bytearray
    position: int
    budget: _Budget

    def field(self, number: int) -> int:
        """Return where a field's value is, 0 when it is absent."""
        vtable = self.position - _read(self.buffer, self.position, "<i")
        entry = 4 + 2 * number
        if entry >= _read(self.buffer, vtable, "<H"):
            return 0
        offset = _read(self.buffer, vtable + entry, "<H")
        return self.position + offset if offset else 0

    def number(self, number: int, form: str = "<Q") -> int:
        """Return an integer of that form."""
        position = self.field(number)
        return _read(self.buffer, position, form) if position else 0

    def content(self, number: int) -> bytes:
        """Return a string or a vector of bytes."""
        place = self.vector(number, 1)
        if len(place) > _MOST_CONTENT_BYTES:
            raise struct.error(f"a text of {len(place)} bytes")
        return bytes(self.buffer[place.start : place.stop])

    def binary(self, number: int) -> tuple[int, int]:
        """Return start and size of a piece of data."""
        position = self.field(number)
        start, size = BINARY.unpack_from(self.buffer, position) if position else (0, 0)
        return start, size

    def table(self, number: int) -> Table | None:
        """Return the table that a field points to."""
        position = self.field(number)
        return self._target(position) if position else None

    def tables(self, number: int) -> Iterator[Table]:
        """Yield the tables of a vector."""
        positions = self.vector(number, 4)
        self.budget.take(len(positions))
        for position in positions:
            yield self._target(position)

    def numbers(self, number: int) -> list[int]:
        """Return a vector of integers of 64 bits."""
        positions = self.vector(number, 8)
        self.budget.take(len(positions))
        return [_read(self.buffer, position, "<Q") for position in positions]

    def vector(self, number: int, nbytes: int) -> range:
        """Return where the elements of a vector are, each of ``nbytes``."""
        position = self.field(number)
        if not position:
            return range(0)
        start = position + _read(self.buffer, position, "<I")
        first = start + 4
        end = first + nbytes * _read(self.buffer, start, "<I")
        if end > len(self.buffer):
            raise struct.error(f"a vector that ends at byte {end} of {len(self.buffer)}")
        return range(first, end, nbytes)

    def _target(self, position: int) -> Table:
        return Table(self.buffer, position + _read(self.buffer, position, "<I"), self.budget)


def _read(buffer: bytearray, position: int, form: str) -> int:
    if position < 0:  # unpack_from would count from the end
        raise struct.error(f"an offset that leads to byte {position}")
    (value,) = struct.unpack_from(form, buffer, position)
    return value
