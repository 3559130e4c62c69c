"""The seam between the block loop of compiled models and the vendor libraries that run them.

A device holds the nets of one bmodel and the memory around them. Two libraries provide one: libbmrt
(``bmrt``, on hardware and on the simulator) and SOPHON-SAIL (``sail``). Not here: tokens, KV caches,
which net to launch (``engine.compiled``).
Source: libbmrt's ``bmrt_get_network_info`` of libsophon 0.5.1; SOPHON-SAIL 3.10.7.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

__all__ = ["DTYPES", "Buffer", "Device", "DeviceCounts", "DeviceMemory", "NetInfo", "StageInfo", "TensorInfo"]

Shape = tuple[int, ...]

DTYPES: Mapping[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),  # numpy has none: the upper half of a float32
    "int32": np.dtype(np.int32),
    "uint32": np.dtype(np.uint32),
    "int16": np.dtype(np.int16),
    "uint16": np.dtype(np.uint16),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
}
"""How a tensor of each dtype is held on the host."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a net. Names differ between compilers: go by position."""

    name: str
    dtype: str
    """A key of ``DTYPES``."""
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of the whole tensor."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True, slots=True)
class StageInfo:
    """One set of shapes that a net was compiled for."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class NetInfo:
    """One net of a bmodel."""

    name: str
    is_dynamic: bool
    """True when smaller shapes than the compiled ones are allowed."""
    has_own_io: bool
    """True for addr_mode io_alone: inputs and outputs live in memory of the net's own, the same for every
    stage, that no other net touches. Otherwise the memory is shared between nets."""
    stages: tuple[StageInfo, ...]


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """Memory of a device. Units: bytes."""

    total: int
    free: int


@dataclass(slots=True)
class DeviceCounts:
    """What a device has done since it was opened, by what costs the host time.

    ``waits`` are the times that launches were waited for, ``copies`` those on the device itself.
    """

    launches: int = 0
    waits: int = 0
    copies: int = 0
    uploaded_bytes: int = 0
    downloaded_bytes: int = 0


class Buffer(ABC):
    """Memory on a device with a dtype and a shape; what it really is belongs to the device."""

    dtype: str
    shape: Shape

    @property
    def nbytes(self) -> int:
        """Bytes of the whole buffer."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Device(ABC):
    """The nets of one bmodel, loaded, and the memory they work on.

    Everything that can be checked is checked before the vendor's library is called. Launches may be queued;
    whatever moves data waits for them first. Not safe for use from two threads at once.
    """

    name: str
    """Where it runs: "bmrt", "bmrt-simulator", "sail"."""
    chip: str
    """The chip in lower case: "bm1684x"."""
    nets: Mapping[str, NetInfo]
    counts: DeviceCounts

    @abstractmethod
    def memory(self) -> DeviceMemory | None:
        """Return how much memory the device has, or None where it cannot tell."""

    @abstractmethod
    def allocate(self, dtype: str, shape: Shape) -> Buffer:
        """Return new memory, all zero; it is freed with the last buffer that refers to it.

        Raises: BackendError when the device has not enough memory.
        """

    @abstractmethod
    def view(self, buffer: Buffer, offset: int, shape: Shape) -> Buffer:
        """Return ``shape`` elements of ``buffer`` from element ``offset`` on, sharing its memory.

        A view keeps what it views alive. Raises: DeviceError when it does not fit.
        """

    @abstractmethod
    def input(self, net: str, index: int, stage: int = 0) -> Buffer:
        """Return the net's own memory for an input; only where ``has_own_io``."""

    @abstractmethod
    def output(self, net: str, index: int, stage: int = 0) -> Buffer:
        """Return the net's own memory for an output; only where ``has_own_io``."""

    @abstractmethod
    def upload(self, buffer: Buffer, values: NDArray[Any]) -> None:
        """Copy host values of the buffer's dtype and shape to the device."""

    @abstractmethod
    def download(self, buffer: Buffer) -> NDArray[Any]:
        """Return a copy of the buffer on the host; bfloat16 comes as uint16."""

    @abstractmethod
    def copy(self, destination: Buffer, source: Buffer) -> None:
        """Copy between two buffers of one dtype and size that do not overlap."""

    @abstractmethod
    def launch(self, net: str, stage: int, inputs: Items[Buffer], outputs: Items[Buffer]) -> None:
        """Run one stage of a net, after what was launched before; it may not have ended on return.

        Shapes: a static net takes exactly the shapes of its stage; a dynamic net takes the buffers' shapes,
        up to the compiled ones.
        Raises: DeviceError when the library reports a fault; one while a net runs may come with the next
        call that waits.
        """

    @abstractmethod
    def wait(self) -> None:
        """Wait until everything that was launched has ended."""

    @abstractmethod
    def close(self) -> None:
        """Free the nets and all memory; closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
