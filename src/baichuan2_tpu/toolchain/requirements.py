"""What a machine must have for TPU-MLIR, and the sentence that says what is missing.

Its programs are for x86-64 Linux and bring their C++ library along, but not the C library, libtinfo, or the
C compiler that builds their attention kernels while a net is compiled. Python's version does not matter:
nothing of the wheel that runs is Python.
Source: ELF headers of tpu_mlir 1.30.2 (highest symbol version, NEEDED entries).
"""

from __future__ import annotations

import ctypes
import platform
import shutil
import sys

__all__ = ["find_c_compiler", "missing_for_compiler", "missing_for_simulator"]

_GLIBC_OF_SIMULATOR = (2, 34)
_GLIBC_OF_COMPILER = (2, 35)
_C_COMPILERS = ("cc", "gcc", "clang")
_TERMINAL_LIBRARY = "libtinfo.so.6"


def find_c_compiler() -> str | None:
    """Return the path of the first C compiler on the user's PATH."""
    return next((path for name in _C_COMPILERS if (path := shutil.which(name))), None)


def missing_for_simulator() -> str | None:
    """Say what keeps the simulator's libraries from being loaded here; None when nothing does."""
    return _missing_system(_GLIBC_OF_SIMULATOR)


def _missing_system(glibc: tuple[int, int]) -> str | None:
    """Say what is wrong with the processor, the system or its C library."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        machine = f"{platform.system()} on {platform.machine()}"
        return f"TPU-MLIR's programs are for x86-64 Linux, and this is {machine}; use such a machine"
    library, version = platform.libc_ver()
    need = f"TPU-MLIR needs glibc {glibc[0]}.{glibc[1]} or newer"
    if library != "glibc":
        return f"{need}, and this system's C library is another; use a system with glibc"
    if tuple(int(part) for part in version.split(".")[:2]) < glibc:
        return f"{need}, and this system has {version}; use a newer system"
    return None


def missing_for_compiler() -> str | None:
    """Say what keeps the compiler from running here; None when nothing does."""
    missing = _missing_system(_GLIBC_OF_COMPILER)
    if missing is not None:
        return missing
    try:
        ctypes.CDLL(_TERMINAL_LIBRARY)
    except OSError:
        return f"TPU-MLIR's programs need {_TERMINAL_LIBRARY}; install it (Debian, Ubuntu: libtinfo6)"
    if find_c_compiler() is None:
        names = ", ".join(_C_COMPILERS)
        return f"no C compiler ({names}) is on PATH, and TPU-MLIR builds its kernels with one; install gcc"
    return None
