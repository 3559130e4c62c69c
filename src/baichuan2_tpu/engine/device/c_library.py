"""What C libraries may not do to this process: print on standard output, or change how floats compute.

Standard output holds a program's answer and nothing else. The vendor's libraries print with ``printf``, from
threads of their own too. So not the file descriptor is turned, which Python shares, but the C library's
``stdout`` variable, once for the whole process.
The simulator makes the thread that starts it flush subnormal numbers to zero, and leaves it so: then numpy,
and the cpu engine beside it, would compute other numbers than before.
Source: ``stdout`` is an assignable lvalue in glibc (its manual, "Standard Streams"); ``fegetenv`` and
``fesetenv`` of C99; measured with the simulator of tpu_mlir 1.30.2.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache

__all__ = ["drop_c_output", "kept_float_mode", "quiet_c_output", "send_c_output_to_stderr"]

_STANDARD_OUTPUT = 1

_ENVIRONMENT_BYTES = 64  # fenv_t has 32 on x86_64 and 8 on aarch64


def send_c_output_to_stderr() -> None:
    """Make ``printf`` of every C library in this process write to standard error.

    Side effect: for the rest of the process; Python's own ``sys.stdout`` is not touched. Calling it twice is
    allowed.
    """
    libc = ctypes.CDLL(None)
    stream = ctypes.c_void_p.in_dll(libc, "stdout")
    if libc.fileno(stream) == _STANDARD_OUTPUT:
        stream.value = ctypes.c_void_p.in_dll(libc, "stderr").value


@contextmanager
def quiet_c_output() -> Generator[None, None, None]:
    """Let ``printf`` of every C library print nothing until the end of the block.

    For calls whose lines say only that they were made.
    """
    stream = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stdout")
    before = stream.value
    stream.value = _null_stream()
    try:
        yield
    finally:
        stream.value = before


def drop_c_output() -> None:
    """Let ``printf`` of every C library print nothing from now on."""
    ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stdout").value = _null_stream()


@cache
def _null_stream() -> int:
    """Return a stream that keeps nothing; it is never closed, for another thread may print to it."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    return libc.fopen(b"/dev/null", b"w")


@contextmanager
def kept_float_mode() -> Generator[None, None, None]:
    """Restore the floating-point environment of this thread at the end of the block."""
    libm = ctypes.CDLL("libm.so.6")
    environment = ctypes.create_string_buffer(_ENVIRONMENT_BYTES)
    libm.fegetenv(environment)
    try:
        yield
    finally:
        libm.fesetenv(environment)
