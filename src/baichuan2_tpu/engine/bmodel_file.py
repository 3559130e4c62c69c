"""What the header of a .bmodel file says, read without the vendor's library, which aborts on a damaged file.

A bmodel is a fixed header, a flatbuffer that describes every net, and the binaries that the flatbuffer points
into. Only what decides whether the file can be loaded is read. Not here: nets and shapes (``bmrt``).
Source: bmodel.fbs and bmodel.hpp of tpu_mlir 1.30.2; the flatbuffers format, "FlatBuffer Internals".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from baichuan2_tpu.errors import ArtifactError

__all__ = ["BmodelFile"]

_MAGIC = 0xFF55AAEE
_HEADER = struct.Struct(
    "<4I48x"
)  # magic, size of this header, of the flatbuffer, of the binaries (mod 2**32)
_BINARY = struct.Struct("<QQ")  # start, size

# Field numbers of the tables in bmodel.fbs.
_MODEL_CHIP, _MODEL_NETS, _MODEL_KERNEL, _MODEL_DEVICES = 3, 4, 6, 7
_NET_STAGES = 3
_STAGE_CONTEXT_BYTES, _STAGE_COEFFICIENTS, _STAGE_SUBNETS, _STAGE_CONTEXTS, _STAGE_IO_BYTES = 3, 4, 12, 14, 18
_STAGE_DYNAMIC_CODE = 11
_COEFFICIENTS_BINARY = 2
_SUBNET_COMMANDS, _SUBNET_CORES, _CORE_COMMANDS = 1, 14, 0
_COMMANDS_COMPUTE, _COMMANDS_COPY = 2, 3
_KERNEL_BINARY = 1

_Binary = tuple[int, int]


@dataclass(frozen=True, slots=True)
class BmodelFile:
    """Units: ``device_bytes`` is the memory that the loaded nets take, with memory shared between them."""

    chip: str
    """In lower case: "bm1684x"."""
    devices: int
    device_bytes: int

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the header of ``path`` and check that the file is as long as it says.

        Raises: ArtifactError when it is no bmodel, cut short or damaged.
        """
        try:
            nbytes = path.stat().st_size
            with path.open("rb") as file:
                head = file.read(_HEADER.size)
                if len(head) < _HEADER.size or _HEADER.unpack(head)[0] != _MAGIC:
                    raise ArtifactError(f"{path}: is no bmodel; name a file made by baichuan2 compile")
                _, header_nbytes, table_nbytes, binary_nbytes = _HEADER.unpack(head)
                file.seek(header_nbytes)
                data = file.read(table_nbytes)
        except OSError as error:
            raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
        wanted = header_nbytes + table_nbytes + binary_nbytes
        if nbytes < wanted or len(data) < table_nbytes:
            raise ArtifactError(f"{path}: has {nbytes} bytes, its header says {wanted}; copy the file again")
        try:
            model = _root(data)
            binaries = set(_binaries(model))
            found = cls(
                chip=model.string(_MODEL_CHIP).lower(),
                devices=max(1, model.number(_MODEL_DEVICES, "<I")),
                device_bytes=_device_bytes(model, binaries),
            )
        except (struct.error, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"{path}: its description is damaged ({error}); copy the file again"
            ) from error
        end = header_nbytes + table_nbytes + max((start + size for start, size in binaries), default=0)
        if nbytes < end:
            raise ArtifactError(f"{path}: has {nbytes} bytes, its nets need {end}; copy the file again")
        return found


@dataclass(frozen=True, slots=True)
class _Table:
    """One table of a flatbuffer; a field that is absent reads as 0, an empty string or nothing."""

    data: bytes
    position: int

    def field(self, number: int) -> int:
        """Return the position of a field's value, 0 when it is absent."""
        vtable = self.position - _read(self.data, self.position, "<i")
        entry = 4 + 2 * number
        if entry >= _read(self.data, vtable, "<H"):
            return 0
        offset = _read(self.data, vtable + entry, "<H")
        return self.position + offset if offset else 0

    def number(self, number: int, form: str) -> int:
        position = self.field(number)
        return _read(self.data, position, form) if position else 0

    def string(self, number: int) -> str:
        position = self.field(number)
        if not position:
            return ""
        start = position + _read(self.data, position, "<I")
        return self.data[start + 4 : start + 4 + _read(self.data, start, "<I")].decode()

    def binary(self, number: int) -> _Binary:
        position = self.field(number)
        start, size = _BINARY.unpack_from(self.data, position) if position else (0, 0)
        return start, size

    def table(self, number: int) -> _Table | None:
        position = self.field(number)
        return _Table(self.data, position + _read(self.data, position, "<I")) if position else None

    def tables(self, number: int) -> Iterator[_Table]:
        for position in self._elements(number, 4):
            yield _Table(self.data, position + _read(self.data, position, "<I"))

    def numbers(self, number: int) -> list[int]:
        return [_read(self.data, position, "<Q") for position in self._elements(number, 8)]

    def _elements(self, number: int, nbytes: int) -> range:
        position = self.field(number)
        if not position:
            return range(0)
        start = position + _read(self.data, position, "<I")
        first = start + 4
        return range(first, first + nbytes * _read(self.data, start, "<I"), nbytes)


def _root(data: bytes) -> _Table:
    return _Table(data, _read(data, 0, "<I"))


def _read(data: bytes, position: int, form: str) -> int:
    (value,) = struct.unpack_from(form, data, position)
    return value


def _binaries(model: _Table) -> Iterator[_Binary]:
    """Yield (start, size) of every part that goes to the device; stages may share one."""
    kernel = model.table(_MODEL_KERNEL)
    if kernel is not None:
        yield kernel.binary(_KERNEL_BINARY)
    for net in model.tables(_MODEL_NETS):
        for stage in net.tables(_NET_STAGES):
            coefficients = stage.table(_STAGE_COEFFICIENTS)
            if coefficients is not None:
                yield coefficients.binary(_COEFFICIENTS_BINARY)
            yield stage.binary(_STAGE_DYNAMIC_CODE)
            for commands in _commands(stage):
                yield commands.binary(_COMMANDS_COMPUTE)
                yield commands.binary(_COMMANDS_COPY)


def _commands(stage: _Table) -> Iterator[_Table]:
    for subnet in stage.tables(_STAGE_SUBNETS):
        yield from subnet.tables(_SUBNET_COMMANDS)
        for core in subnet.tables(_SUBNET_CORES):
            yield from core.tables(_CORE_COMMANDS)


def _device_bytes(model: _Table, binaries: set[_Binary]) -> int:
    """Count binaries, the largest working memory, and every net's own inputs and outputs."""
    stages = [list(net.tables(_NET_STAGES)) for net in model.tables(_MODEL_NETS)]
    working = [
        sum(stage.numbers(_STAGE_CONTEXTS)) or stage.number(_STAGE_CONTEXT_BYTES, "<Q")
        for net in stages
        for stage in net
    ]
    own = [max((stage.number(_STAGE_IO_BYTES, "<Q") for stage in net), default=0) for net in stages]
    return sum(size for _, size in binaries) + max(working, default=0) + sum(own)
