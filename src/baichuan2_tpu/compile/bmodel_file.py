"""Take the weights out of a bmodel and put them into another: so that large ones are written only once.

``model_tool --combine`` holds everything it combines in memory, up to twice, and needs the disk for its
inputs and its result. A bmodel without its weights (a skeleton) combines in no time; the weights follow at
the end, layer by layer. In a skeleton they are replaced by the digest that the file has of them, so that the
weights of different layers stay different and those of one layer's stages stay the same.
A file is a header of 64 bytes, a flatbuffer that describes it, and data at offsets from the flatbuffer's end.
Not here: any other content of a bmodel.
Source: ``bmodel.fbs`` (the schema inside model_tool) and ``debugger/disassembler.py`` of tpu_mlir 1.30.2;
https://flatbuffers.dev/internals for the encoding.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from baichuan2_tpu.errors import CompileError

__all__ = [
    "StageLayout",
    "WeightRegion",
    "align",
    "copy_range",
    "detach_weights",
    "digest_range",
    "fill_skeleton",
    "read_stages",
]

_MAGIC = 0xFF55AAEE
_HEADER = struct.Struct("<IIIQ")  # magic, size of the header, of the flatbuffer, of the data
_HEADER_BYTES = 64
_BINARY = struct.Struct("<QQ")  # start, size
_TIME = b"Thu Jan  1 00:00:00 1970\n"  # as ctime writes it; the real time would change every build
_CODE_BYTES = 32
_PAGE_BYTES = 4096  # model_tool begins everything on a page of the file
_COPY_BYTES = 1 << 24

# Fields by table, numbered as in bmodel.fbs.
_MODEL_TIME, _MODEL_NETS = 2, 4
_NET_NAME, _NET_STAGES = 0, 3
_STAGE_INPUTS, _STAGE_WEIGHTS, _STAGE_IO_BYTES = 0, 4, 18
_TENSOR_ADDRESS = 3
_WEIGHTS_CODE, _WEIGHTS_BINARY = 1, 2


@dataclass(frozen=True, slots=True)
class WeightRegion:
    """The weights of one stage. Units: ``start`` counts bytes from the beginning of the file."""

    code: str
    """The compiler's own digest: the sha256 below 512 MiB, above that its count of bits overflows."""
    start: int
    nbytes: int
    field: int
    """Where the flatbuffer says start and size."""


@dataclass(frozen=True, slots=True)
class StageLayout:
    """Where one stage of one net has its things.

    Units: ``inputs`` are device addresses; ``own_io_bytes`` is memory for inputs and outputs that no other
    net shares, 0 for none.
    """

    net: str
    inputs: tuple[int, ...]
    own_io_bytes: int
    weights: WeightRegion


class _Description:
    """The header and the flatbuffer of a bmodel, which can be changed and written."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
            magic, size, length, self.data_bytes = _HEADER.unpack_from(head.ljust(_HEADER.size, b"\0"))
            if magic != _MAGIC or size != _HEADER_BYTES:
                raise CompileError(f"{path}: is no bmodel; compile again")
            self.rest_of_head = head[_HEADER.size :]
            self.buffer = bytearray(file.read(length))
        self.base = _HEADER_BYTES + length
        if len(self.buffer) != length or path.stat().st_size < self.base + self.data_bytes:
            raise CompileError(f"{path}: is cut off; compile again")

    def stages(self) -> Iterator[StageLayout]:
        """Yield every stage of every net."""
        for net in self._tables(self._field(self._target(0), _MODEL_NETS)):
            name = self._bytes(self._field(net, _NET_NAME)).decode()
            for stage in self._tables(self._field(net, _NET_STAGES)):
                tensors = self._tables(self._field(stage, _STAGE_INPUTS))
                addresses = tuple(self._number(tensor, _TENSOR_ADDRESS) for tensor in tensors)
                own_bytes = self._number(stage, _STAGE_IO_BYTES)
                yield StageLayout(name, addresses, own_bytes, self._weights(stage))

    def _weights(self, stage: int) -> WeightRegion:
        weights = self._target(self._field(stage, _STAGE_WEIGHTS))
        code = self._bytes(self._field(weights, _WEIGHTS_CODE)).hex()
        field = self._field(weights, _WEIGHTS_BINARY)
        start, nbytes = _BINARY.unpack_from(self.buffer, field)
        return WeightRegion(code, self.base + start, nbytes, field)

    def place(self, region: WeightRegion, start: int, nbytes: int) -> None:
        """Say where the weights of a stage are now; ``start`` counts from the beginning of the file."""
        _BINARY.pack_into(self.buffer, region.field, start - self.base, nbytes)

    def clear_time(self) -> None:
        """Replace the time of creation by a constant, so that the same input gives the same bytes."""
        position = self._target(self._field(self._target(0), _MODEL_TIME)) + 4
        if self._int(position - 4) != len(_TIME):
            raise CompileError("the bmodel's time of creation has an unknown form; use TPU-MLIR 1.30.2")
        self.buffer[position : position + len(_TIME)] = _TIME

    def head(self, file_bytes: int) -> bytes:
        """Return header and flatbuffer for a file of that size."""
        header = _HEADER.pack(_MAGIC, _HEADER_BYTES, len(self.buffer), file_bytes - self.base)
        return header + self.rest_of_head + bytes(self.buffer)

    def _int(self, position: int) -> int:
        return int.from_bytes(self.buffer[position : position + 4], "little")

    def _target(self, position: int) -> int:
        """Follow an offset."""
        return position + self._int(position)

    def _offset(self, table: int, index: int) -> int:
        """Return how far into a table a field is; 0 when it is absent."""
        (back,) = struct.unpack_from("<i", self.buffer, table)
        (vtable_bytes,) = struct.unpack_from("<H", self.buffer, table - back)
        entry = 4 + 2 * index
        if entry >= vtable_bytes:
            return 0
        (offset,) = struct.unpack_from("<H", self.buffer, table - back + entry)
        return offset

    def _field(self, table: int, index: int) -> int:
        """Return where a table keeps a field that every bmodel of ours has."""
        offset = self._offset(table, index)
        if not offset:
            raise CompileError("the bmodel has an unknown form; use TPU-MLIR 1.30.2")
        return table + offset

    def _number(self, table: int, index: int) -> int:
        """Return a field of 64 bits; an absent one is 0."""
        offset = self._offset(table, index)
        return struct.unpack_from("<Q", self.buffer, table + offset)[0] if offset else 0

    def _bytes(self, position: int) -> bytes:
        """Return a string or a vector of bytes."""
        start = self._target(position)
        return bytes(self.buffer[start + 4 : start + 4 + self._int(start)])

    def _tables(self, position: int) -> list[int]:
        """Return where the tables of a vector begin."""
        start = self._target(position)
        return [self._target(start + 4 + 4 * index) for index in range(self._int(start))]


def read_stages(bmodel: Path) -> list[StageLayout]:
    """Return where every stage has its things.

    Raises: CompileError when it is no whole bmodel.
    """
    return list(_Description(bmodel).stages())


def detach_weights(bmodel: Path, skeleton: Path) -> None:
    """Write ``bmodel`` without its weights; what is left out takes no disk space.

    Raises: CompileError when it is no whole bmodel.
    """
    description = _Description(bmodel)
    found = {stage.weights.start: stage.weights for stage in description.stages()}
    regions = [found[start] for start in sorted(found)]
    for stage in list(description.stages()):
        description.place(stage.weights, stage.weights.start, _CODE_BYTES)
    size = bmodel.stat().st_size
    with bmodel.open("rb") as source, skeleton.open("wb") as target:
        target.truncate(size)
        begins = [0, *(region.start + region.nbytes for region in regions)]
        ends = [*(region.start for region in regions), size]
        for begin, end in zip(begins, ends, strict=True):
            copy_range(source, begin, target, begin, end - begin)
        for region in regions:
            target.seek(region.start)
            target.write(bytes.fromhex(region.code))
        target.seek(0)
        target.write(description.head(size))


def fill_skeleton(skeleton: Path, result: Path, places: Mapping[str, tuple[int, int]], nbytes: int) -> None:
    """Write ``skeleton`` as a file of ``nbytes`` whose weights will lie at ``places``, by their code.

    Side effect: ``result`` is made, or changed where it differs; bytes at ``places`` stay as they are.
    Raises: CompileError when it is no whole bmodel.
    """
    description = _Description(skeleton)
    description.clear_time()
    for stage in list(description.stages()):
        description.place(stage.weights, *places[stage.weights.code])
    result.touch()
    with skeleton.open("rb") as source, result.open("r+b") as target:
        copy_range(source, 0, target, 0, skeleton.stat().st_size)
        target.seek(0)
        target.write(description.head(nbytes))
        target.truncate(nbytes)


def align(nbytes: int) -> int:
    """Return where the next thing may begin in a bmodel."""
    return -(-nbytes // _PAGE_BYTES) * _PAGE_BYTES


def copy_range(source: BinaryIO, begin: int, target: BinaryIO, place: int, nbytes: int) -> str:
    """Copy a part of one file into another and return its sha256.

    Raises: CompileError when the file ends too soon.
    """
    digest = hashlib.sha256()
    target.seek(place)
    for block in _blocks(source, begin, nbytes):
        digest.update(block)
        target.write(block)
    return digest.hexdigest()


def digest_range(path: Path, begin: int, nbytes: int) -> str | None:
    """Return the sha256 of a part of a file; None when the file ends before it does."""
    if path.stat().st_size < begin + nbytes:
        return None
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in _blocks(file, begin, nbytes):
            digest.update(block)
    return digest.hexdigest()


def _blocks(source: BinaryIO, begin: int, nbytes: int) -> Iterator[bytes]:
    """Read a part of a file piece by piece."""
    source.seek(begin)
    while nbytes:
        block = source.read(min(nbytes, _COPY_BYTES))
        if not block:
            raise CompileError(f"{source.name}: is cut off; compile again")
        yield block
        nbytes -= len(block)
