"""What the header of a .bmodel file says, read without the vendor's library, which aborts on a damaged file.

Only what decides whether the file can be loaded is read. Not here: how the file is laid out (``layout``),
nets and shapes (``engine.device.bmrt_nets``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from baichuan2_tpu.bmodel.fields import Commands, Core, Kernel, Model, Net, Stage, Subnet, Weights
from baichuan2_tpu.bmodel.layout import BmodelEnvelope, Table
from baichuan2_tpu.errors import ArtifactError

__all__ = ["BmodelFile"]

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

        Raises: ArtifactError when it is not a bmodel, cut short or damaged.
        """
        envelope = BmodelEnvelope.read(path)
        try:
            model = envelope.root
            binaries = set(_binaries(model))
            header = cls(
                chip=model.content(Model.CHIP).decode().lower(),
                devices=max(1, model.number(Model.DEVICES, "<I")),
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
        return header


def _binaries(model: Table) -> Iterator[_Binary]:
    """Yield (start, size) of every part that goes to the device; stages may share one."""
    kernel = model.table(Model.KERNEL)
    if kernel is not None:
        yield kernel.binary(Kernel.BINARY)
    for net in model.tables(Model.NETS):
        for stage in net.tables(Net.STAGES):
            weights = stage.table(Stage.WEIGHTS)
            if weights is not None:
                yield weights.binary(Weights.BINARY)
            yield stage.binary(Stage.DYNAMIC_CODE)
            for commands in _commands(stage):
                yield commands.binary(Commands.COMPUTE)
                yield commands.binary(Commands.COPY)


def _commands(stage: Table) -> Iterator[Table]:
    for subnet in stage.tables(Stage.SUBNETS):
        yield from subnet.tables(Subnet.COMMANDS)
        for core in subnet.tables(Subnet.CORES):
            yield from core.tables(Core.COMMANDS)


def _device_bytes(model: Table, binaries: set[_Binary]) -> int:
    """Count binaries, the largest working memory, and every net's own inputs and outputs."""
    stages = [list(net.tables(Net.STAGES)) for net in model.tables(Model.NETS)]
    working = [
        sum(stage.numbers(Stage.WORKING_PARTS)) or stage.number(Stage.WORKING_BYTES)
        for net in stages
        for stage in net
    ]
    own = [max((stage.number(Stage.IO_BYTES) for stage in net), default=0) for net in stages]
    return sum(size for _, size in binaries) + max(working, default=0) + sum(own)
