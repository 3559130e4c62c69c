"""The vendor's functional simulator of a BM1684X, made ready for libbmlib.

It computes what the chip computes, slowly and without timing. Its library takes the place of the driver;
libbmlib and libbmrt beside it are used as on hardware (``bmrt``). Not here: installing it (``toolchain``).
Source: libbmlib, libbmrt and libcmodel_bm1684x of tpu_mlir 1.30.2, and what was measured on them.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import struct
from pathlib import Path

from baichuan2_tpu.engine.device.c_library import drop_c_output, quiet_c_output, send_c_output_to_stderr
from baichuan2_tpu.engine.device.elf_file import call_slots, load_address, text_addresses
from baichuan2_tpu.errors import BackendUnavailable

__all__ = ["prepare_simulator", "simulator_memory_bytes"]

_CHIP_LIBRARY = "libcmodel_bm1684x.so"
_LIBRARIES = ("libbmlib.so.0", "libbmrt.so", _CHIP_LIBRARY)
_CHIP_VARIABLE = "TPUKERNEL_FIRMWARE_PATH"
_MEMORY_VARIABLE = "CMODEL_GLOBAL_MEM_SIZE"
_DEFAULT_MEMORY_BYTES = 1 << 32  # libbmlib's own default
_LEAST_MEMORY_BYTES = 0x6000000  # libbmlib aborts when it opens a chip of 0x5000000

_UNLOCK = "pthread_mutex_unlock"
_CHATTER = (
    b"[%d] do_allreduce: %d.\n",  # at every launch
    b"[%d] load custom cmodel firmware %s\n",
    b"mult engine c_model init\n",
)
_PAGE_BYTES = 4096
_READ_WRITE, _READ_EXECUTE, _PRIVATE_ANONYMOUS = 3, 5, 0x22  # PROT_*, MAP_*


def prepare_simulator(folder: Path) -> None:
    """Make libbmlib of ``folder`` find the simulated chip, and make the chip's waiting threads yield.

    Side effect: an environment variable of this process names the chip; its library stays loaded; what C
    libraries print goes to standard error, but for the lines of this one that say nothing.
    Raises: BackendUnavailable when a library is missing, or is not one that this module knows.
    """
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise BackendUnavailable(
            f"the simulator runs on Linux with x86_64 only, this is {platform.system()} with "
            f"{platform.machine()}; use the cpu engine"
        )
    for name in _LIBRARIES:
        if not (folder / name).is_file():
            raise BackendUnavailable(f"{folder / name}: not found; run baichuan2 toolchain install")
    send_c_output_to_stderr()
    chip = folder / _CHIP_LIBRARY
    os.environ[_CHIP_VARIABLE] = str(chip)
    simulator_memory_bytes()
    try:
        with quiet_c_output():
            ctypes.CDLL(str(chip), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise BackendUnavailable(
            f"{chip}: cannot be loaded ({error}); run baichuan2 toolchain install"
        ) from error
    _make_threads_yield(chip)
    _silence(chip)
    atexit.register(drop_c_output)  # libbmlib takes its leave when the process has ended


def simulator_memory_bytes() -> int:
    """Return how much memory the simulated chip has; ``CMODEL_GLOBAL_MEM_SIZE`` changes it.

    Raises: BackendUnavailable when the variable holds no number, or one too small for the simulator itself.
    """
    text = os.environ.get(_MEMORY_VARIABLE)
    if text is None:
        return _DEFAULT_MEMORY_BYTES
    try:
        nbytes = int(text, 0)
    except ValueError as error:
        raise BackendUnavailable(
            f"{_MEMORY_VARIABLE}={text}: is not a number of bytes; give one like 0x100000000"
        ) from error
    if nbytes < _LEAST_MEMORY_BYTES:
        raise BackendUnavailable(
            f"{_MEMORY_VARIABLE}={text}: is less than the simulator itself needs; "
            f"give {_LEAST_MEMORY_BYTES:#x} or more"
        )
    return nbytes


def _make_threads_yield(chip: Path) -> None:
    """Turn the chip's calls of ``pthread_mutex_unlock`` to one that also yields the processor.

    Seven threads of the chip poll under a mutex. On 2 cores the one with work to do waits for the others'
    time slices: a tiny block takes 1.4-3 s, and 65 ms once they yield.
    """
    try:
        slots = [load_address(chip) + slot for slot in call_slots(chip, _UNLOCK)]
    except ValueError as error:
        raise BackendUnavailable(f"{error}; run baichuan2 toolchain install") from error
    if not slots:
        raise BackendUnavailable(
            f"{chip}: does not call {_UNLOCK}, as tpu_mlir 1.30.2's does; run baichuan2 toolchain install"
        )
    code = _yielding_unlock()
    for slot in slots:
        pointer = ctypes.c_uint64.from_address(slot)
        if ctypes.string_at(pointer.value, len(code)) != code:
            _protect(slot, _READ_WRITE)
            pointer.value = _place(code)


def _silence(chip: Path) -> None:
    """Make the lines empty that the chip prints when nothing is wrong; its faults are still printed."""
    for text in _CHATTER:
        for address in text_addresses(chip, text):
            start = load_address(chip) + address
            _protect(start, _READ_WRITE)
            ctypes.memset(start, 0, 1)


def _yielding_unlock() -> bytes:
    """Return machine code of ``int f(mutex) { pthread_mutex_unlock(mutex); sched_yield(); return 0; }``."""
    libc = ctypes.CDLL(None)

    def call(name: str) -> bytes:
        address = ctypes.cast(getattr(libc, name), ctypes.c_void_p).value
        return b"\x48\xb8" + struct.pack("<Q", address) + b"\xff\xd0"  # mov rax, address; call rax

    align, restore, zero = (
        b"\x48\x83\xec\x08",
        b"\x48\x83\xc4\x08",
        b"\x31\xc0",
    )  # sub/add rsp, 8; xor eax, eax
    return align + call(_UNLOCK) + call("sched_yield") + zero + restore + b"\xc3"


def _place(code: bytes) -> int:
    """Copy code to a page that is never freed: the chip's threads run until the process has ended."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_ssize_t,
    )
    page = libc.mmap(None, _PAGE_BYTES, _READ_WRITE, _PRIVATE_ANONYMOUS, -1, 0)
    if page == ctypes.c_void_p(-1).value:
        raise BackendUnavailable(f"the simulator needs a page of memory: {os.strerror(ctypes.get_errno())}")
    ctypes.memmove(page, code, len(code))
    _protect(page, _READ_EXECUTE)
    return page


def _protect(address: int, access: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    if libc.mprotect(address & -_PAGE_BYTES, _PAGE_BYTES, access) != 0:
        raise BackendUnavailable(
            f"this system forbids to change the simulator's memory: {os.strerror(ctypes.get_errno())}"
        )
