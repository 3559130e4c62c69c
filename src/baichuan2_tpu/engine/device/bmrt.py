"""A device driven through libbmrt: a BM1684X on this machine, or the vendor's simulator of one.

Both take the same calls (``bmrt_library``). libbmlib and libbmrt abort the process on many mistakes, and the
simulator on all of them, so whatever can be checked is checked first.
Not here: tokens, KV caches (``engine.compiled``).
Source: libsophon 0.5.1 and the simulator of tpu_mlir 1.30.2.
"""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence as Items
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.bmodel.header import BmodelFile
from baichuan2_tpu.engine.device.base import (
    DTYPES,
    Buffer,
    Device,
    DeviceCounts,
    DeviceMemory,
    NetInfo,
    Shape,
    StageInfo,
)
from baichuan2_tpu.engine.device.bmrt_library import (
    DTYPE_NAMES,
    HARDWARE_LIBRARIES,
    MAX_DIMENSIONS,
    SHARE_MEMORY,
    BmrtLibrary,
    DeviceStat,
    MemoryStruct,
    ShapeStruct,
    TensorStruct,
)
from baichuan2_tpu.engine.device.bmrt_nets import read_nets
from baichuan2_tpu.engine.device.c_library import quiet_c_output
from baichuan2_tpu.engine.device.checks import (
    check_chip,
    check_copy,
    check_launch,
    check_memory,
    check_values,
    check_view,
)
from baichuan2_tpu.engine.device.simulator import prepare_simulator, simulator_memory_bytes
from baichuan2_tpu.errors import BackendError, BackendUnavailable, DeviceError

__all__ = ["BmrtBuffer", "BmrtDevice", "DeviceHandles", "request_device"]

_CHIPS = {0x1684: "bm1684", 0x1686: "bm1684x", 0x1688: "bm1688"}  # bm_get_chipid
_MOST_BYTES = (1 << 32) - 1  # bm_device_mem_t counts in 32 bits
_MEGABYTE = 1 << 20
_DTYPE_VALUES = {name: value for value, name in enumerate(DTYPE_NAMES)}
_STATUSES = {
    1: "device not ready",
    2: "general failure",
    3: "timeout",
    4: "invalid parameter",
    5: "not enough memory",
    6: "data error",
    7: "busy",
    8: "not supported yet",
    9: "not supported",
}  # bm_status_t


class BmrtBuffer(Buffer):
    """Device memory; ``owner`` is the allocation that a view lies in, kept alive by it.

    ``tensor`` says it all for a launch; made once, for a layer is launched with the same buffers every time.
    """

    def __init__(self, memory: MemoryStruct, dtype: str, shape: Shape, owner: Buffer | None = None) -> None:
        if len(shape) > MAX_DIMENSIONS:
            raise DeviceError(f"{len(shape)} dimensions are not possible: {MAX_DIMENSIONS} are")
        self.memory = memory
        self.dtype = dtype
        self.shape = shape
        self.owner = owner
        self.tensor = TensorStruct(_DTYPE_VALUES[dtype], ShapeStruct(len(shape), shape), memory)


@dataclass(slots=True)
class DeviceHandles:
    """What is to be given back to the library, and how much memory was asked of it."""

    library: BmrtLibrary
    device: ctypes.c_void_p
    runtime: int = 0
    allocated_bytes: int = 0
    memories: dict[int, MemoryStruct] = field(default_factory=dict[int, MemoryStruct])
    """What was allocated beside the nets, by its address."""
    is_open: bool = True
    counts: DeviceCounts = field(default_factory=DeviceCounts)
    is_busy: bool = False
    """Whether nets were launched that have not been waited for."""

    def wait(self) -> int:
        """Wait for what was launched; return the library's status, 0 where all is well."""
        if not self.is_busy:
            return 0
        self.is_busy = False
        self.counts.waits += 1
        return self.library.thread_sync(self.device)

    def close(self) -> None:
        """Give everything back; closing twice is allowed."""
        if not self.is_open:
            return
        self.wait()  # a fault of what runs does not matter any more
        self.is_open = False
        # The simulator ends the process with 255 where some is left.
        for memory in list(self.memories.values()):
            self.free(memory)
        if self.runtime:
            self.library.destroy(self.runtime)
        self.library.dev_free(self.device)

    def memory(self) -> DeviceMemory | None:
        """Return how much memory the device has, or None where it cannot tell, as the simulator."""
        stat = DeviceStat()
        status = self.library.get_stat(self.device, stat)
        if status != 0 or stat.total_mb <= 0:
            return None
        return DeviceMemory(stat.total_mb * _MEGABYTE, (stat.total_mb - stat.used_mb) * _MEGABYTE)

    def free(self, memory: MemoryStruct) -> None:
        """Free memory, unless that was done when the device was closed."""
        if self.memories.pop(memory.address, None) is not None:
            self.wait()  # what runs may still use it; its fault, if any, shows at the next launch
            self.library.free_device(self.device, memory)
            self.allocated_bytes -= memory.size


class BmrtDevice(Device):
    """The nets of one bmodel on device ``device``.

    ``simulator`` is the folder of the simulator's libraries; without it those of ``libraries`` drive
    hardware. ``reserve_bytes`` is memory that the caller will allocate beside the nets.
    Units: the memory of the simulator is counted for this object alone, whatever else the process simulates.
    Raises: ArtifactError for a damaged file or one for another chip; BackendUnavailable when a library or the
    device is missing; BackendError when the device has too little free memory.
    """

    def __init__(
        self,
        bmodel: Path,
        *,
        device: int = 0,
        simulator: Path | None = None,
        libraries: Path = HARDWARE_LIBRARIES,
        reserve_bytes: int = 0,
    ) -> None:
        file = BmodelFile.read(bmodel)
        if file.devices > 1:
            raise BackendError(
                f"{bmodel}: is for {file.devices} devices, this engine drives one; compile for one device"
            )
        self.name = "bmrt" if simulator is None else "bmrt-simulator"
        self._total_bytes = 0
        if simulator is not None:
            prepare_simulator(simulator)
            self._total_bytes = simulator_memory_bytes()
        with quiet_c_output() if simulator else nullcontext():
            self._library = BmrtLibrary(simulator or libraries)
            self._handles = request_device(self._library, device)
        self.counts = self._handles.counts
        self._latest_launch = ""
        # Without it the simulator's threads outlive the interpreter and crash the process at its end.
        self._finalizer = weakref.finalize(self, self._handles.close)
        try:
            self.chip = _chip(self._library, self._handles.device)
            check_chip(bmodel, file.chip, self.chip)
            check_memory(file.device_bytes + reserve_bytes, self.memory(), f"{bmodel} with its buffers")
            self._load(bmodel)
            self._handles.allocated_bytes += file.device_bytes
            self.nets, self._memories = read_nets(self._library, self._handles.runtime)
        except BaseException:
            self.close()
            raise

    def memory(self) -> DeviceMemory | None:
        """Return how much memory the device has, or None where it cannot tell."""
        if self._total_bytes:
            return DeviceMemory(self._total_bytes, self._total_bytes - self._handles.allocated_bytes)
        return self._handles.memory()

    def allocate(self, dtype: str, shape: Shape) -> BmrtBuffer:
        """Return new memory, all zero; it is freed with the last buffer that refers to it."""
        handle = self._open()
        nbytes = math.prod(shape) * DTYPES[dtype].itemsize
        if not 0 < nbytes <= _MOST_BYTES:
            raise DeviceError(f"a buffer of {nbytes} bytes is not possible: 1 to {_MOST_BYTES} are")
        check_memory(nbytes, self.memory(), f"a buffer of {dtype} {list(shape)}")
        memory = MemoryStruct()
        self._check(self._library.malloc_device_byte(handle, memory, nbytes), f"allocating {nbytes} bytes")
        self._handles.allocated_bytes += nbytes
        self._handles.memories[memory.address] = memory
        buffer = BmrtBuffer(memory, dtype, shape)
        weakref.finalize(buffer, self._handles.free, memory).atexit = False
        zero = ctypes.c_int(0)
        self._check(self._library.memset_device_ext(handle, ctypes.byref(zero), 1, memory), "clearing memory")
        return buffer

    def view(self, buffer: Buffer, offset: int, shape: Shape) -> BmrtBuffer:
        """Return ``shape`` elements of ``buffer`` from element ``offset`` on, sharing its memory."""
        check_view(buffer, offset, shape)
        itemsize = DTYPES[buffer.dtype].itemsize
        memory = MemoryStruct.from_buffer_copy(_memory(buffer))
        memory.address += offset * itemsize
        memory.size = math.prod(shape) * itemsize
        return BmrtBuffer(memory, buffer.dtype, shape, buffer)

    def input(self, net: str, index: int, stage: int = 0) -> BmrtBuffer:
        """Return the net's own memory for an input; only where ``has_own_io``."""
        info = self._stage(net, stage).inputs[index]
        return BmrtBuffer(self._memories[net][stage].inputs[index], info.dtype, info.shape)

    def output(self, net: str, index: int, stage: int = 0) -> BmrtBuffer:
        """Return the net's own memory for an output; only where ``has_own_io``."""
        info = self._stage(net, stage).outputs[index]
        return BmrtBuffer(self._memories[net][stage].outputs[index], info.dtype, info.shape)

    def upload(self, buffer: Buffer, values: NDArray[Any]) -> None:
        """Copy host values of the buffer's dtype and shape to the device."""
        check_values(buffer, values)
        source = np.ascontiguousarray(values)
        self.wait()
        self.counts.uploaded_bytes += buffer.nbytes
        status = self._library.memcpy_s2d(self._open(), _memory(buffer), source.ctypes.data, buffer.nbytes, 0)
        self._check(status, f"uploading {buffer.nbytes} bytes")

    def download(self, buffer: Buffer) -> NDArray[Any]:
        """Return a copy of the buffer on the host; bfloat16 comes as uint16."""
        values = np.empty(buffer.shape, DTYPES[buffer.dtype])
        self.wait()
        self.counts.downloaded_bytes += buffer.nbytes
        status = self._library.memcpy_d2s(self._open(), values.ctypes.data, _memory(buffer), buffer.nbytes, 0)
        self._check(status, f"downloading {buffer.nbytes} bytes")
        return values

    def copy(self, destination: Buffer, source: Buffer) -> None:
        """Copy between two buffers of one dtype and size that do not overlap."""
        check_copy(destination, source)
        to, start = _memory(destination), _memory(source)
        if abs(to.address - start.address) < source.nbytes:
            raise DeviceError("cannot copy between buffers that overlap")
        self.wait()
        self.counts.copies += 1
        status = self._library.memcpy_d2d_byte(self._open(), to, 0, start, 0, source.nbytes)
        self._check(status, f"copying {source.nbytes} bytes on the device")

    def launch(self, net: str, stage: int, inputs: Items[Buffer], outputs: Items[Buffer]) -> None:
        """Queue one stage of a net; libbmrt runs what is queued in turn."""
        self._open()
        info = self._net(net)
        check_launch(info, stage, inputs, outputs)
        sources, results = _tensors(inputs), _tensors(outputs)
        is_launched = self._library.launch_tensor_ex(
            self._handles.runtime, net.encode(), sources, len(inputs), results, len(outputs), True, False
        )
        if not is_launched:
            raise DeviceError(f"libbmrt could not launch stage {stage} of {net}; see its message above")
        self._handles.is_busy = True
        self._latest_launch = f"stage {stage} of {net}"
        self.counts.launches += 1

    def wait(self) -> None:
        """Wait until everything that was launched has ended."""
        self._open()
        self._check(self._handles.wait(), f"running nets up to {self._latest_launch}")

    def close(self) -> None:
        """Free the nets and all memory."""
        self._finalizer()

    def _open(self) -> ctypes.c_void_p:
        if not self._handles.is_open:
            raise BackendError("this device is closed; open the model again")
        return self._handles.device

    def _net(self, net: str) -> NetInfo:
        if net not in self.nets:
            raise DeviceError(f"the bmodel has no net {net}; it has {', '.join(self.nets)}")
        return self.nets[net]

    def _stage(self, net: str, stage: int) -> StageInfo:
        self._open()
        info = self._net(net)
        if not info.has_own_io:
            raise DeviceError(f"{net} has no input and output memory of its own; allocate some")
        return info.stages[stage]

    def _load(self, bmodel: Path) -> None:
        library, handle = self._library, self._handles.device
        self._handles.runtime = library.create(handle) or 0
        if not self._handles.runtime:
            raise DeviceError("libbmrt could not start on the device; see its message above")
        library.set_flags(self._handles.runtime, SHARE_MEMORY)
        if not library.load_bmodel(self._handles.runtime, str(bmodel).encode()):
            raise DeviceError(f"{bmodel}: libbmrt could not load it; see its message above")

    def _check(self, status: int, action: str) -> None:
        if status != 0:
            reason = _STATUSES.get(status, "unknown status")
            raise DeviceError(f"{action} failed: {reason} ({status})")


def request_device(library: BmrtLibrary, device: int) -> DeviceHandles:
    """Open a device.

    Raises: BackendUnavailable when this machine has no such device.
    """
    count = ctypes.c_int(0)
    is_counted = library.dev_getcount(count) == 0  # a SoC without the PCIe driver's control node cannot
    if is_counted and count.value > 0 and not 0 <= device < count.value:
        raise BackendUnavailable(
            f"there is no device {device}: this machine has {count.value}, counted from 0"
        )
    if device < 0 or library.dev_query(device) != 0:
        raise BackendUnavailable(
            f"this machine shows no TPU {device} (/dev/bm-sophon{device} or /dev/bm-tpu{device}); install "
            "the SOPHON driver, or use --engine simulator, or a quantised checkpoint on the cpu"
        )
    handle = ctypes.c_void_p()
    status = library.dev_request(handle, device)
    if status != 0:
        raise BackendUnavailable(
            f"device {device} cannot be opened: {_STATUSES.get(status, 'unknown status')} ({status}); "
            "look who uses it with bm-smi"
        )
    return DeviceHandles(library, handle)


def _chip(library: BmrtLibrary, handle: ctypes.c_void_p) -> str:
    chip_id = ctypes.c_uint(0)
    if library.get_chipid(handle, chip_id) != 0:
        raise DeviceError("the device does not report its chip; restart its driver")
    return _CHIPS.get(chip_id.value, f"chip {chip_id.value:#x}")


def _own(buffer: Buffer) -> BmrtBuffer:
    if not isinstance(buffer, BmrtBuffer):
        raise DeviceError("a buffer belongs to another kind of device; allocate it on this one")
    return buffer


def _memory(buffer: Buffer) -> MemoryStruct:
    return _own(buffer).memory


def _tensors(buffers: Items[Buffer]) -> ctypes.Array[TensorStruct]:
    return (TensorStruct * len(buffers))(*[_own(buffer).tensor for buffer in buffers])
