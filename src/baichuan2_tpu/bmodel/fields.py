"""The fields of a bmodel's flatbuffer that are used here: their numbers, by table.

Not here: reading a field (``layout``).
Source: ``bmodel.fbs`` of tpu_mlir 1.30.2 (the schema inside model_tool).
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Commands", "Core", "Kernel", "Model", "Net", "Stage", "Subnet", "Tensor", "Weights"]


class Model(IntEnum):
    """The root."""

    TIME = 2
    CHIP = 3
    NETS = 4
    KERNEL = 6
    DEVICES = 7


class Kernel(IntEnum):
    """Code of the chip that comes along."""

    BINARY = 1


class Net(IntEnum):
    """One net."""

    NAME = 0
    STAGES = 3


class Stage(IntEnum):
    """One stage of a net."""

    INPUTS = 0
    WORKING_BYTES = 3
    WEIGHTS = 4  # the schema's coefficients
    DYNAMIC_CODE = 11
    SUBNETS = 12
    WORKING_PARTS = 14
    IO_BYTES = 18


class Tensor(IntEnum):
    """One input or output of a stage."""

    ADDRESS = 3


class Weights(IntEnum):
    """The weights of a stage."""

    CODE = 1
    BINARY = 2


class Subnet(IntEnum):
    """A part of a stage."""

    COMMANDS = 1
    CORES = 14


class Core(IntEnum):
    """What one core of the chip does."""

    COMMANDS = 0


class Commands(IntEnum):
    """Instructions."""

    COMPUTE = 2
    COPY = 3
