"""Bounds of a GGUF file's header, checked before the library makes objects of what it counts.

The library believes every count and length: 2^60 entries, or arrays in arrays, keep it busy until memory is
full.
Not here: what the entries mean (``gguf_file``, ``gguf_tokenizer``).
Source: docs/gguf.md of ggml, versions 2 and 3.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import open_regular
from baichuan2_tpu.quoting import quote

__all__ = ["check_header"]

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_VALUE_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each plain type: integers, floats and booleans."""

# A 13B has 363 tensors and 30 entries, the largest vocabularies 260,000 tokens and 500,000 merges.
_MOST_TENSORS = 65_536
_MOST_ENTRIES = 4096
_MOST_ELEMENTS = 4_000_000
_MOST_NAME_BYTES = 1024
_MOST_TEXT_BYTES = 16 << 20
_MOST_DIMENSIONS = 4
_MOST_NUMBERS = 1 << 48


_LENGTH = struct.Struct("<Q")


class _Damage(Exception):  # noqa: N818 - it never leaves this module
    """What is wrong with the header."""


def check_header(path: Path) -> None:
    """Check that everything the header counts is there, and of a size that a model has.

    Raises: CheckpointError naming the file, the value seen and the value allowed.
    """
    try:
        with open_regular(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            _Header(content).check()
    except (_Damage, OSError, ValueError) as error:  # ValueError: an empty file
        raise CheckpointError(
            f"{path}: is not a readable GGUF file ({error}); it is truncated or damaged, fetch it again"
        ) from error


class _Header:
    """Reads the header of a file, of which ``content`` is the map, from its start."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._size = len(content)
        self._start = 0
        self._elements = 0

    def check(self) -> None:
        """Read all of it.

        Raises: _Damage.
        """
        if self._bytes(4) != _MAGIC:
            raise _Damage("it does not begin with GGUF")
        version = self._integer(4)
        if version not in _VERSIONS:
            raise _Damage(f"its version is {version}, allowed are 2 and 3, little-endian")
        tensors = self._count("tensors", _MOST_TENSORS)
        for _ in range(self._count("entries", _MOST_ENTRIES)):
            self._check_entry()
        for _ in range(tensors):
            self._check_tensor()

    def _check_entry(self) -> None:
        name = self._text("a name", _MOST_NAME_BYTES)
        kind = self._integer(4)
        if kind != _ARRAY:
            self._check_values(name, kind, 1)
            return
        kind = self._integer(4)
        if kind == _ARRAY:
            raise _Damage(f"{quote(name)} is an array of arrays, allowed are plain values")
        self._check_values(name, kind, self._count(f"values of {quote(name)}", _MOST_ELEMENTS))

    def _check_values(self, name: str, kind: int, count: int) -> None:
        self._elements += count
        if self._elements > _MOST_ELEMENTS:
            raise _Damage(f"it has more than {_MOST_ELEMENTS} values")
        if kind == _STRING:
            self._skip_texts(name, count)
        elif kind in _VALUE_BYTES:
            self._skip(count * _VALUE_BYTES[kind])
        else:
            raise _Damage(f"{quote(name)} is of type {kind}, which is unknown")

    def _check_tensor(self) -> None:
        name = self._text("a name", _MOST_NAME_BYTES)
        dimensions = self._integer(4)
        if not 1 <= dimensions <= _MOST_DIMENSIONS:
            raise _Damage(f"tensor {quote(name)} has {dimensions} dimensions, 1 to 4 are allowed")
        shape = [self._integer(8) for _ in range(dimensions)]
        if not 0 < math.prod(shape) <= _MOST_NUMBERS:
            raise _Damage(f"tensor {quote(name)} has the shape {shape[::-1]}, which no model has")
        self._integer(4)  # its type; one that is unknown is refused by the library
        if (offset := self._integer(8)) > self._size:
            raise _Damage(f"tensor {quote(name)} lies at {offset}, the file has {self._size} bytes")

    def _skip_texts(self, name: str, count: int) -> None:
        """Pass over texts, whose UTF-8 the library checks; a vocabulary has 100,000, hence the plain loop."""
        read_length, start = _LENGTH.unpack_from, self._start
        try:
            for _ in range(count):
                (length,) = read_length(self._content, start)
                start += 8 + length
                if length > _MOST_TEXT_BYTES:
                    raise _Damage(
                        f"a text of {quote(name)} has {length} bytes, at most {_MOST_TEXT_BYTES} are allowed"
                    )
        except struct.error as error:
            raise _Damage("it ends within its header") from error
        self._start = start
        self._skip(0)

    def _count(self, what: str, most: int) -> int:
        count = self._integer(8)
        if count > most:
            raise _Damage(f"it has {count} {what}, at most {most} are allowed")
        return count

    def _text(self, what: str, most: int) -> str:
        size = self._integer(8)
        if size > most:
            raise _Damage(f"{what} has {size} bytes, at most {most} are allowed")
        try:
            return self._bytes(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _Damage(f"{what} is not UTF-8") from error

    def _integer(self, size: int) -> int:
        return int.from_bytes(self._bytes(size), "little")

    def _bytes(self, count: int) -> bytes:
        start = self._start
        self._skip(count)
        return self._content[start : self._start]

    def _skip(self, count: int) -> None:
        self._start += count
        if self._start > self._size:
            raise _Damage("it ends within its header")
