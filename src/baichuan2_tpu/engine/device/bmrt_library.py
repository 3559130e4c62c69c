"""libbmlib and libbmrt through ctypes: their structs, and every function this package calls with its types.

Hardware and simulator have the same interface. Not here: what a status means for a caller, who owns memory
(``bmrt``), the simulator's environment (``simulator``).
Source: bmlib_runtime.h, bmdef.h and bmruntime_interface.h of libsophon 0.5.1; older ones have shorter
structs.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import POINTER, Structure, c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint, c_void_p
from pathlib import Path
from typing import Any

from baichuan2_tpu.engine.device.c_library import kept_float_mode, send_c_output_to_stderr
from baichuan2_tpu.errors import BackendUnavailable

__all__ = [
    "DTYPE_NAMES",
    "HARDWARE_LIBRARIES",
    "IO_ALONE",
    "MAX_DIMENSIONS",
    "OLDEST_LIBSOPHON",
    "SHARE_MEMORY",
    "BmrtLibrary",
    "DeviceStat",
    "MemoryStruct",
    "NetStruct",
    "ShapeStruct",
    "StageStruct",
    "TensorStruct",
]

HARDWARE_LIBRARIES = Path("/opt/sophon/libsophon-current/lib")
"""Where libsophon's packages put the libraries, on SoC and PCIe hosts alike."""

DTYPE_NAMES = ("float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "uint32", "bfloat16")
"""Names of ``bm_data_type_t`` by its value, spelled as in ``device.DTYPES``."""

MAX_DIMENSIONS = 8
SHARE_MEMORY = 1
"""``BM_RUNTIME_SHARE_MEM``: nets use one memory for what they need only while they run."""
IO_ALONE = 1
"""``addr_mode`` of a net whose inputs and outputs lie in memory of their own."""

_MAX_HEAPS = 4
OLDEST_LIBSOPHON = "0.5.1"
"""Older ones have shorter structs."""
_OLDEST = f"libsophon {OLDEST_LIBSOPHON} (SDK V24.04.01)"


class MemoryStruct(Structure):
    """``bm_device_mem_t``: a piece of device memory, passed by value. Units: ``size`` counts bytes."""

    address: int
    size: int
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("reserved", c_uint),
        ("dmabuf_fd", c_int),
        ("flags", c_uint),
        ("size", c_uint),
    )


class ShapeStruct(Structure):
    """``bm_shape_t``."""

    num_dims: int
    dims: ctypes.Array[c_int]
    _fields_ = (("num_dims", c_int), ("dims", c_int * MAX_DIMENSIONS))


class TensorStruct(Structure):
    """``bm_tensor_t``: memory with a dtype and a shape; store mode 0 is the plain one."""

    dtype: int
    shape: ShapeStruct
    memory: MemoryStruct
    store_mode: int
    _fields_ = (("dtype", c_int), ("shape", ShapeStruct), ("memory", MemoryStruct), ("store_mode", c_int))


class StageStruct(Structure):
    """``bm_stage_info_t``: shapes and the runtime's own memory of one stage, an entry a tensor."""

    input_shapes: Any
    output_shapes: Any
    input_memories: Any
    output_memories: Any
    _fields_ = (
        ("input_shapes", POINTER(ShapeStruct)),
        ("output_shapes", POINTER(ShapeStruct)),
        ("input_memories", POINTER(MemoryStruct)),
        ("output_memories", POINTER(MemoryStruct)),
    )


class NetStruct(Structure):
    """``bm_net_info_t``; the library owns what it points to."""

    is_dynamic: bool
    input_count: int
    input_names: Any
    input_dtypes: Any
    output_count: int
    output_names: Any
    output_dtypes: Any
    stage_count: int
    stages: Any
    addr_mode: int
    _fields_ = (
        ("name", c_char_p),
        ("is_dynamic", c_bool),
        ("input_count", c_int),
        ("input_names", POINTER(c_char_p)),
        ("input_dtypes", POINTER(c_int)),
        ("input_scales", POINTER(c_float)),
        ("output_count", c_int),
        ("output_names", POINTER(c_char_p)),
        ("output_dtypes", POINTER(c_int)),
        ("output_scales", POINTER(c_float)),
        ("stage_count", c_int),
        ("stages", POINTER(StageStruct)),
        ("max_input_bytes", POINTER(c_size_t)),
        ("max_output_bytes", POINTER(c_size_t)),
        ("input_zero_points", POINTER(c_int)),
        ("output_zero_points", POINTER(c_int)),
        ("input_devices", POINTER(c_int)),
        ("output_devices", POINTER(c_int)),
        ("core_count", c_int),
        ("addr_mode", c_int32),
    )


class _HeapStat(Structure):
    """``bm_heap_stat``. Units: megabytes."""

    _fields_ = (("total_mb", c_uint), ("free_mb", c_uint), ("used_mb", c_uint))


class DeviceStat(Structure):
    """``bm_dev_stat_t``. Units: megabytes; the simulator leaves it as it was."""

    total_mb: int
    used_mb: int
    _fields_ = (
        ("total_mb", c_int),
        ("used_mb", c_int),
        ("use_percent", c_int),
        ("heap_count", c_int),
        ("heaps", _HeapStat * _MAX_HEAPS),
    )


Function = Callable[..., Any]
_CType = type[Any]


class BmrtLibrary:
    """The functions of libbmlib and libbmrt in ``folder``, each with the types of its arguments.

    Those that return an int return a ``bm_status_t``, 0 when all went well. An attribute is a function's
    name without its prefix.
    Side effect: what C libraries print goes to standard error from now on; the libraries stay loaded.
    Raises: BackendUnavailable when a library is missing, cannot be loaded, or is too old.
    """

    def __init__(self, folder: Path) -> None:
        send_c_output_to_stderr()
        bmlib = _load(folder, ("libbmlib.so.0", "libbmlib.so"))
        bmrt = _load(folder, ("libbmrt.so", "libbmrt.so.1.0"))

        def lib(name: str, *arguments: _CType, result: _CType | None = c_int) -> Function:
            return _function(bmlib, name, arguments, result)

        def rt(name: str, *arguments: _CType, result: _CType | None = c_bool) -> Function:
            return _function(bmrt, name, arguments, result)

        handle, address, memory = c_void_p, c_void_p, MemoryStruct
        self.dev_getcount = lib("bm_dev_getcount", POINTER(c_int))
        self.dev_query = lib("bm_dev_query", c_int)
        # The simulator's starts its threads, and changes the arithmetic of the one that calls it.
        self.dev_request = kept_float_mode()(lib("bm_dev_request", POINTER(handle), c_int))
        self.dev_free = lib("bm_dev_free", handle, result=None)
        self.get_chipid = lib("bm_get_chipid", handle, POINTER(c_uint))
        self.get_stat = lib("bm_get_stat", handle, POINTER(DeviceStat))
        self.malloc_device_byte = lib("bm_malloc_device_byte", handle, POINTER(memory), c_uint)
        self.free_device = lib("bm_free_device", handle, memory, result=None)
        self.memset_device_ext = lib("bm_memset_device_ext", handle, address, c_int, memory)
        self.memcpy_s2d = lib("bm_memcpy_s2d_partial_offset", handle, memory, address, c_uint, c_uint)
        self.memcpy_d2s = lib("bm_memcpy_d2s_partial_offset", handle, address, memory, c_uint, c_uint)
        self.memcpy_d2d_byte = lib("bm_memcpy_d2d_byte", handle, memory, c_size_t, memory, c_size_t, c_size_t)
        self.thread_sync = lib("bm_thread_sync", handle)

        # Of the whole process, where the libraries' malloc is from too: another one may be preloaded.
        self.free = _function(ctypes.CDLL(None), "free", (c_void_p,), None)
        """For what the libraries allocate for the caller."""

        runtime, name, tensors = c_void_p, c_char_p, POINTER(TensorStruct)
        self.create = rt("bmrt_create", handle, result=runtime)
        self.destroy = rt("bmrt_destroy", runtime, result=None)
        self.set_flags = rt("bmrt_set_flags", runtime, ctypes.c_uint32, result=None)
        self.load_bmodel = rt("bmrt_load_bmodel", runtime, c_char_p)
        self.get_network_number = rt("bmrt_get_network_number", runtime, result=c_int)
        self.get_network_names = rt("bmrt_get_network_names", runtime, POINTER(POINTER(name)), result=None)
        self.get_network_info = rt("bmrt_get_network_info", runtime, name, result=POINTER(NetStruct))
        self.launch_tensor_ex = rt(
            "bmrt_launch_tensor_ex", runtime, name, tensors, c_int, tensors, c_int, c_bool, c_bool
        )


def _load(folder: Path, names: tuple[str, ...]) -> ctypes.CDLL:
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise BackendUnavailable(
            f"{folder / names[0]}: not found; install {_OLDEST} or newer, "
            "or name the simulator with --engine simulator"
        )
    _refuse_second_copy(path)
    try:
        # The simulator's chip looks for functions of libbmlib among the global symbols.
        return ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BackendUnavailable(f"{path}: cannot be loaded ({error}); install {_OLDEST} or newer") from error


def _refuse_second_copy(path: Path) -> None:
    """Check that no other copy of the library is loaded: the linker would mix the two by their name."""
    stem = path.name.partition(".")[0]
    real = path.resolve()
    for line in Path("/proc/self/maps").read_text("utf-8").splitlines():
        loaded = Path(line.split(maxsplit=5)[-1])
        if loaded.name.partition(".")[0] == stem and loaded != real:
            raise BackendUnavailable(
                f"{path}: another copy is in use in this process already ({loaded}); "
                "use hardware and simulator in processes of their own"
            )


def _function(
    library: ctypes.CDLL, name: str, arguments: tuple[_CType, ...], result: _CType | None
) -> Function:
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise BackendUnavailable(
            f"{library._name}: has no {name}; install {_OLDEST} or newer"  # noqa: SLF001 - its only name
        ) from error
    function.argtypes = arguments
    function.restype = result
    return function
