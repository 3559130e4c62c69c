"""Handle, Tensor, dtypes and exceptions of the double of ``sophon.sail`` (``sail_double``).

Source: src/bind.cpp and src/tensor.cpp of SOPHON-SAIL 3.10.7; what was seen of it on the functional model.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.device.bmrt_library import BmrtLibrary, MemoryStruct

__all__ = [
    "EXCEPTIONS",
    "Chip",
    "Dtype",
    "Handle",
    "LogLevel",
    "Memory",
    "SailEngineError",
    "Tensor",
    "Trap",
]


class Trap(AssertionError):  # noqa: N818 - what the real library is here
    """The real library would have crashed or corrupted memory here."""


class SailDeviceError(Exception): ...


class SailTensorError(Exception): ...


class SailEngineError(Exception): ...


class SailBMImageError(Exception): ...


class SailDecoderError(Exception): ...


class SailEncoderError(Exception): ...


class SailUnknownError(Exception): ...


class MemoryError(Exception): ...  # noqa: A001 - the vendor's name


class DataTypeError(Exception): ...


class NotSupport(Exception): ...  # noqa: N818 - the vendor's name


EXCEPTIONS = (
    DataTypeError,
    MemoryError,
    NotSupport,
    SailBMImageError,
    SailDecoderError,
    SailDeviceError,
    SailEncoderError,
    SailEngineError,
    SailTensorError,
    SailUnknownError,
)
"""Every class that bind.cpp registers; there is no common base."""


class Dtype(Enum):
    """``bm_data_type_t``."""

    BM_FLOAT32 = 0
    BM_FLOAT16 = 1
    BM_INT8 = 2
    BM_UINT8 = 3
    BM_INT16 = 4
    BM_UINT16 = 5
    BM_INT32 = 6
    BM_UINT32 = 7
    BM_BFLOAT16 = 8


HOST_DTYPES: Mapping[Dtype, np.dtype[Any]] = {
    Dtype.BM_FLOAT32: np.dtype(np.float32),
    Dtype.BM_FLOAT16: np.dtype(np.uint16),
    Dtype.BM_INT8: np.dtype(np.int8),
    Dtype.BM_UINT8: np.dtype(np.uint8),
    Dtype.BM_INT16: np.dtype(np.int16),
    Dtype.BM_UINT16: np.dtype(np.uint16),
    Dtype.BM_INT32: np.dtype(np.int32),
    Dtype.BM_UINT32: np.dtype(np.uint32),
    Dtype.BM_BFLOAT16: np.dtype(np.uint16),
}
"""What ``asnumpy`` gives and ``update_data`` wants."""

CONSTRUCTED = {np.dtype(np.float32), np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int32)}
UPLOADED = set(HOST_DTYPES.values())
"""Overloads of ``update_data``; an array of any other dtype is converted to float32 first."""


class LogLevel(Enum):
    ERROR = 4


@dataclass
class Chip:
    """The simulated device behind one double, and what its callers hold of it."""

    library: BmrtLibrary
    total_bytes: int
    is_soc: bool
    """True where engine-owned tensors are mapped into the host's memory, as builds for an SoC do."""
    used_bytes: int = 0
    level: LogLevel | None = None


@dataclass
class Memory:
    """A piece of device memory; ``is_alive`` ends with its owner, whatever still points into it."""

    struct: MemoryStruct
    is_alive: bool = True


class Handle:
    """Closed once nothing uses it any more: the garbage collector ends objects of a cycle in any order."""

    chip: Chip

    def __init__(self, tpu_id: int) -> None:
        if tpu_id != 0:
            raise SailDeviceError("init device failure")
        self.native = ctypes.c_void_p()
        assert self.chip.library.dev_request(self.native, tpu_id) == 0
        self._users = 1

    def __del__(self) -> None:
        if getattr(self, "native", None):
            self.drop()

    def hold(self) -> None:
        """Count one more user; not a call of SAIL."""
        self._users += 1

    def drop(self) -> None:
        """Count one user less; not a call of SAIL."""
        self._users -= 1
        if self._users == 0:
            self.chip.library.dev_free(self.native)

    def get_target(self) -> str:
        return "BM1684X"


class Tensor:
    def __init__(self, source: Handle | Tensor, *arguments: Any) -> None:
        self._owned: Memory | None = None
        self._host: NDArray[np.uint8] | None = None
        if isinstance(source, Tensor):
            self._init_view(source, *arguments)
        elif isinstance(arguments[0], np.ndarray):
            self._init_array(source, *arguments)
        else:
            self._init_memory(source, *arguments)

    def _init_view(self, source: Tensor, shape: Sequence[int], offset: int, no_copy: bool = True) -> None:
        if not no_copy:
            raise SailTensorError("not supported")
        if offset < 0:
            raise TypeError("incompatible constructor arguments")
        self._set(source.handle, shape, source.dtype())
        if not is_valid(shape):
            raise SailTensorError("invalid shape")
        start = offset * HOST_DTYPES[self._dtype].itemsize
        if start + self.size_bytes > source.size_bytes:
            raise SailTensorError("size out of range")
        struct = MemoryStruct.from_buffer_copy(source.device_memory)
        struct.address += start
        struct.size = self.size_bytes
        self._struct: MemoryStruct | None = struct
        self._memory = source._memory
        if source._host is not None:
            self._host = source._host[start : start + self.size_bytes]

    def _init_array(
        self, handle: Handle, values: NDArray[Any], own_sys: bool = False, own_dev: bool = True
    ) -> None:
        if values.dtype not in CONSTRUCTED:
            raise Trap(f"an array of {values.dtype} becomes FLOAT32 without a word")
        dtype = next(dtype for dtype, host in HOST_DTYPES.items() if host == values.dtype)
        self._init_memory(handle, values.shape, dtype, own_sys, own_dev)
        self.update_data(values)

    def _init_memory(
        self,
        handle: Handle,
        shape: Sequence[int],
        dtype: Dtype,
        own_sys: bool = False,
        own_dev: bool = False,
    ) -> None:
        self._set(handle, shape, dtype)
        self._struct, self._memory = None, None
        if not is_valid(shape):
            return  # such a tensor has no memory, and nothing says so
        if self.size_bytes >= 1 << 31:
            raise Trap(f"{self.size_bytes} bytes do not fit the int that counts them")
        if own_dev:
            self._memory = self._owned = allocate(handle, self.size_bytes)
            handle.hold()
            self._struct = self._owned.struct
        if own_sys:
            self._host = np.zeros(self.size_bytes, np.uint8)

    def _set(self, handle: Handle, shape: Sequence[int], dtype: Dtype) -> None:
        self.handle = handle
        self._shape = tuple(shape)
        self._dtype = dtype
        self.size_bytes = math.prod(self._shape) * HOST_DTYPES[dtype].itemsize

    @classmethod
    def of_engine(cls, handle: Handle, shape: Sequence[int], dtype: Dtype, memory: Memory) -> Tensor:
        """Return a tensor on memory that an engine owns; not a call of SAIL."""
        tensor = cls(handle, shape, dtype, False, False)
        tensor._memory, tensor._struct = memory, memory.struct
        if handle.chip.is_soc:
            tensor._host = np.zeros(tensor.size_bytes, np.uint8)
            tensor.sync_d2s()
        return tensor

    def __del__(self) -> None:
        if self._owned is not None:
            self._owned.is_alive = False
            self.handle.chip.library.free_device(self.handle.native, self._owned.struct)
            self.handle.chip.used_bytes -= self._owned.struct.size
            self.handle.drop()

    @property
    def device_memory(self) -> MemoryStruct:
        """The device memory, if it is still there; not a call of SAIL."""
        if self._struct is None or self._memory is None:
            raise SailTensorError("invalid Tensor")
        if not self._memory.is_alive:
            raise Trap("the memory behind this tensor was freed")
        return self._struct

    def shape(self) -> list[int]:
        return list(self._shape)

    def dtype(self) -> Dtype:
        return self._dtype

    def element_size(self) -> int:
        return HOST_DTYPES[self._dtype].itemsize

    def nbytes(self) -> int:
        return self.size_bytes

    def is_sys_data_valid(self) -> bool:
        return self._host is not None

    def update_data(self, values: NDArray[Any]) -> None:
        if values.dtype not in UPLOADED:
            values = values.astype(np.float32)
        host = HOST_DTYPES[self._dtype]
        is_half = self._dtype in (Dtype.BM_FLOAT16, Dtype.BM_BFLOAT16)
        if values.shape != self._shape:
            raise SailTensorError("invalid argument")
        if values.dtype.itemsize != host.itemsize or not (is_half or values.dtype == host):
            raise SailTensorError("Wrong dtype of input array!")
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        if self._host is not None:
            self._host[:] = data
        else:
            self._write(data)

    def asnumpy(self) -> NDArray[Any]:
        data = self._read() if self._host is None else self._host.copy()
        return data.view(HOST_DTYPES[self._dtype]).reshape(self._shape)

    def sync_s2d(self) -> None:
        if self._host is not None:
            self._write(self._host)

    def sync_d2s(self) -> None:
        if self._host is not None:
            self._host[:] = self._read()

    def sync_d2d(self, src: Tensor, offset_src: int, offset_dst: int, length: int) -> None:
        if self._dtype != src.dtype():
            raise SailTensorError("mismatch Tensor")
        if offset_src + length > math.prod(src.shape()) or offset_dst + length > math.prod(self._shape):
            raise SailTensorError("size out of range")
        if min(offset_src, offset_dst, length) < 0:
            raise Trap("negative numbers are taken as they are")
        itemsize = self.element_size()
        to, of, count = offset_dst * itemsize, offset_src * itemsize, length * itemsize
        target, source = self.device_memory, src.device_memory
        if abs(target.address + to - source.address - of) < count:
            raise Trap("memory that overlaps is copied wrong")
        library = self.handle.chip.library
        assert library.memcpy_d2d_byte(self.handle.native, target, to, source, of, count) == 0

    def _write(self, data: NDArray[np.uint8]) -> None:
        library, native = self.handle.chip.library, self.handle.native
        assert library.memcpy_s2d(native, self.device_memory, data.ctypes.data, data.nbytes, 0) == 0

    def _read(self) -> NDArray[np.uint8]:
        data = np.empty(self.size_bytes, np.uint8)
        library, native = self.handle.chip.library, self.handle.native
        assert library.memcpy_d2s(native, data.ctypes.data, self.device_memory, data.nbytes, 0) == 0
        return data


def is_valid(shape: Sequence[int]) -> bool:
    return bool(shape) and min(shape) > 0


def allocate(handle: Handle, nbytes: int) -> Memory:
    """Return zeroed memory; the simulator would end the process where there is none left."""
    chip = handle.chip
    if chip.used_bytes + nbytes > chip.total_bytes:
        raise RuntimeError("no enough device memory")
    memory = Memory(MemoryStruct())
    assert chip.library.malloc_device_byte(handle.native, memory.struct, nbytes) == 0
    chip.used_bytes += nbytes
    zero = ctypes.c_int(0)
    assert chip.library.memset_device_ext(handle.native, ctypes.byref(zero), 1, memory.struct) == 0
    return memory
