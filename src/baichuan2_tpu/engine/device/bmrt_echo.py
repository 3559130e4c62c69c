"""Prove the memory of a device through libbmlib alone: what goes there comes back, and moves on it.

No bmodel is needed. The copy on the device is made by its own DMA engine on the word of its firmware, so that
driver, firmware and memory all take part. Not here: nets (``bmrt``).
Source: bmlib_runtime.h of libsophon 0.5.1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.device.base import DeviceMemory
from baichuan2_tpu.engine.device.bmrt import DeviceHandles, request_device
from baichuan2_tpu.engine.device.bmrt_library import HARDWARE_LIBRARIES, BmrtLibrary, MemoryStruct
from baichuan2_tpu.engine.device.simulator import prepare_simulator
from baichuan2_tpu.errors import DeviceError

__all__ = ["ECHO_BYTES", "echo_memory"]

ECHO_BYTES = 16 << 20
"""Several of the driver's own buffers, and still at once done."""

Bytes = NDArray[np.uint8]


def echo_memory(
    device: int, *, simulator: Path | None = None, libraries: Path = HARDWARE_LIBRARIES
) -> DeviceMemory | None:
    """Send random bytes to a device, copy them there, fetch the copy and compare.

    Returns how much memory the device had before, or None where it cannot tell.

    Side effect: as of ``BmrtDevice``; all memory is given back.
    Raises: BackendUnavailable when a library or the device is missing; DeviceError where a step fails or the
    bytes differ.
    """
    if simulator is not None:
        prepare_simulator(simulator)
    library = BmrtLibrary(simulator or libraries)
    handles = request_device(library, device)
    sent = np.random.default_rng(0).integers(0, 256, ECHO_BYTES, np.uint8)
    try:
        memory = handles.memory()
        fetched = _echo(library, handles, sent)
    finally:
        handles.close()
    changed = int(np.count_nonzero(sent != fetched))
    if changed:
        raise DeviceError(
            f"{changed:,} of {ECHO_BYTES:,} bytes came back changed from device {device}, allowed are none; "
            "restart the machine, and replace the device if it happens again"
        )
    return memory


def _echo(library: BmrtLibrary, handles: DeviceHandles, sent: Bytes) -> Bytes:
    handle, count = handles.device, sent.nbytes
    first, second = _allocate(library, handles, count), _allocate(library, handles, count)
    fetched = np.zeros_like(sent)
    _check(library.memcpy_s2d(handle, first, sent.ctypes.data, count, 0), "sending")
    _check(library.memcpy_d2d_byte(handle, second, 0, first, 0, count), "copying on the device")
    _check(library.memcpy_d2s(handle, fetched.ctypes.data, second, count, 0), "fetching")
    return fetched


def _allocate(library: BmrtLibrary, handles: DeviceHandles, count: int) -> MemoryStruct:
    memory = MemoryStruct()
    _check(library.malloc_device_byte(handles.device, memory, count), "allocating")
    handles.memories[memory.address] = memory
    handles.allocated_bytes += count
    return memory


def _check(status: int, action: str) -> None:
    if status != 0:
        raise DeviceError(
            f"{action} {ECHO_BYTES:,} bytes failed with status {status} of libbmlib; dmesg says why"
        )
