"""Take the weights out of a bmodel and put them into another: so that large ones are written only once.

``model_tool --combine`` holds everything it combines in memory, up to twice, and needs the disk for its
inputs and its result. A bmodel without its weights (a skeleton) combines in no time; the weights follow at
the end, layer by layer. In a skeleton they are replaced by the digest that the file has of them, so that the
weights of different layers stay different and those of one layer's stages stay the same.
Not here: how the file is laid out (``layout``), what its header says (``header``).
Source: ``debugger/disassembler.py`` of tpu_mlir 1.30.2.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from baichuan2_tpu.bmodel.fields import Model, Net, Stage, Tensor, Weights
from baichuan2_tpu.bmodel.layout import BINARY, BmodelEnvelope, Table
from baichuan2_tpu.errors import ArtifactError, CompileError
from baichuan2_tpu.files import hash_blocks

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

_TIME = b"Thu Jan  1 00:00:00 1970\n"  # as ctime writes it; the real time would change every build
_CODE_BYTES = 32
_PAGE_BYTES = 4096  # model_tool begins everything on a page of the file
_COPY_BYTES = 1 << 24


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
        self._path = path
        try:
            self._envelope = BmodelEnvelope.read(path)
            self.stages = tuple(self._read_stages())
        except (ArtifactError, struct.error, UnicodeDecodeError) as error:
            raise CompileError(f"{path}: is not a complete bmodel; compile again") from error
        self._check_regions()

    def _read_stages(self) -> Iterator[StageLayout]:
        """Yield every stage of every net."""
        for net in self._envelope.root.tables(Model.NETS):
            name = net.content(Net.NAME).decode()
            for stage in net.tables(Net.STAGES):
                addresses = tuple(tensor.number(Tensor.ADDRESS) for tensor in stage.tables(Stage.INPUTS))
                yield StageLayout(name, addresses, stage.number(Stage.IO_BYTES), self._weights(stage))

    def _weights(self, stage: Table) -> WeightRegion:
        weights = stage.table(Stage.WEIGHTS)
        if weights is None or not weights.field(Weights.BINARY):
            raise CompileError("the bmodel has an unknown form; use TPU-MLIR 1.30.2")
        start, nbytes = weights.binary(Weights.BINARY)
        code = weights.content(Weights.CODE)
        if len(code) != _CODE_BYTES or start + nbytes > self._envelope.data_bytes:
            raise CompileError(f"{self._path}: is not a complete bmodel; compile again")
        return WeightRegion(
            code=code.hex(),
            start=self._envelope.base + start,
            nbytes=nbytes,
            field=weights.field(Weights.BINARY),
        )

    def _check_regions(self) -> None:
        """Check that two stages share their weights or have them apart, and so where that is said."""
        regions = [stage.weights for stage in self.stages]
        for spans in (
            {(region.start, region.nbytes) for region in regions},
            {(region.field, BINARY.size) for region in regions},
        ):
            for (start, nbytes), (following, _) in itertools.pairwise(sorted(spans)):
                if start + nbytes > following:
                    raise CompileError(f"{self._path}: its weights overlap each other; compile again")

    def place(self, region: WeightRegion, start: int, nbytes: int) -> None:
        """Say where the weights of a stage are now; ``start`` counts from the beginning of the file."""
        BINARY.pack_into(self._envelope.buffer, region.field, start - self._envelope.base, nbytes)

    def clear_time(self) -> None:
        """Replace the time of creation by a constant, so that the same input gives the same bytes."""
        try:
            place = self._envelope.root.vector(Model.TIME, 1)
        except struct.error as error:
            raise CompileError(f"{self._path}: is not a complete bmodel; compile again") from error
        if len(place) != len(_TIME):
            raise CompileError("the bmodel's time of creation has an unknown form; use TPU-MLIR 1.30.2")
        self._envelope.buffer[place.start : place.stop] = _TIME

    def head(self, file_bytes: int) -> bytes:
        """Return header and flatbuffer for a file of that size."""
        return self._envelope.head(file_bytes)


def read_stages(bmodel: Path) -> list[StageLayout]:
    """Return where every stage has its things.

    Raises: CompileError when it is not a complete bmodel.
    """
    return list(_Description(bmodel).stages)


def detach_weights(bmodel: Path, skeleton: Path) -> None:
    """Write ``bmodel`` without its weights; what is left out takes no disk space.

    Raises: CompileError when it is not a complete bmodel.
    """
    description = _Description(bmodel)
    by_start = {stage.weights.start: stage.weights for stage in description.stages}
    regions = [by_start[start] for start in sorted(by_start)]
    for stage in description.stages:
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
    Raises: CompileError when it is not a complete bmodel.
    """
    description = _Description(skeleton)
    description.clear_time()
    for stage in description.stages:
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

    def copy_blocks() -> Iterator[bytes]:
        for block in _read_blocks(source, begin, nbytes):
            target.write(block)
            yield block

    target.seek(place)
    return hash_blocks(copy_blocks())


def digest_range(path: Path, begin: int, nbytes: int) -> str | None:
    """Return the sha256 of a part of a file; None when the file ends before it does."""
    if path.stat().st_size < begin + nbytes:
        return None
    with path.open("rb") as file:
        return hash_blocks(_read_blocks(file, begin, nbytes))


def _read_blocks(source: BinaryIO, begin: int, nbytes: int) -> Iterator[bytes]:
    """Read a part of a file piece by piece."""
    source.seek(begin)
    while nbytes:
        block = source.read(min(nbytes, _COPY_BYTES))
        if not block:
            raise CompileError(f"{source.name}: is cut off; compile again")
        yield block
        nbytes -= len(block)
