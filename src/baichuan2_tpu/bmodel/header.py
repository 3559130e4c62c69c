"""What the header of a .bmodel file says, read without the vendor's library, which aborts on a damaged file.

Only what decides whether the file can be loaded is read. Not here: how the file is laid out
(``bmodel_format``), nets and shapes (``bmrt``).
Source: ``bmodel.fbs`` of tpu_mlir 1.30.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from baichuan2_tpu.bmodel.layout import BmodelEnvelope, Table
from baichuan2_tpu.errors import ArtifactError

__all__ = ["BmodelFile"]

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
        envelope = BmodelEnvelope.read(path)
        try:
            model = envelope.root
            binaries = set(_binaries(model))
            found = cls(
                chip=model.content(_MODEL_CHIP).decode().lower(),
                devices=max(1, model.number(_MODEL_DEVICES, "<I")),
                device_bytes=_device_bytes(model, binaries),
            )
        except (struct.error, UnicodeDecodeError) as error:
            raise ArtifactError(
                f"{path}: its description is damaged ({error}); copy the file again"
            ) from error
        end = envelope.base + max((start + size for start, size in binaries), default=0)
        nbytes = path.stat().st_size
        if nbytes < end:
            raise ArtifactError(f"{path}: has {nbytes} bytes, its nets need {end}; copy the file again")
        return found


def _binaries(model: Table) -> Iterator[_Binary]:
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


def _commands(stage: Table) -> Iterator[Table]:
    for subnet in stage.tables(_STAGE_SUBNETS):
        yield from subnet.tables(_SUBNET_COMMANDS)
        for core in subnet.tables(_SUBNET_CORES):
            yield from core.tables(_CORE_COMMANDS)


def _device_bytes(model: Table, binaries: set[_Binary]) -> int:
    """Count binaries, the largest working memory, and every net's own inputs and outputs."""
    stages = [list(net.tables(_NET_STAGES)) for net in model.tables(_MODEL_NETS)]
    working = [
        sum(stage.numbers(_STAGE_CONTEXTS)) or stage.number(_STAGE_CONTEXT_BYTES)
        for net in stages
        for stage in net
    ]
    own = [max((stage.number(_STAGE_IO_BYTES) for stage in net), default=0) for net in stages]
    return sum(size for _, size in binaries) + max(working, default=0) + sum(own)
