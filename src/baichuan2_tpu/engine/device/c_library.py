"""Keep what C libraries print away from standard output, which holds a program's answer and nothing else.

The vendor's libraries print with ``printf``, from threads of their own too. So not the file descriptor is
turned, which Python shares, but the C library's ``stdout`` variable, once for the whole process.
Source: ``stdout`` is an assignable lvalue in glibc (its manual, "Standard Streams").
"""

from __future__ import annotations

import ctypes
from pathlib import Path

__all__ = ["send_c_output_to_file", "send_c_output_to_stderr"]

_STANDARD_OUTPUT = 1
_LINE_BUFFERED = 1  # _IOLBF


def send_c_output_to_stderr() -> None:
    """Make ``printf`` of every C library in this process write to standard error, unless it goes elsewhere.

    Side effect: for the rest of the process; Python's own ``sys.stdout`` is not touched. Calling it twice is
    allowed.
    """
    libc = ctypes.CDLL(None)
    stream = ctypes.c_void_p.in_dll(libc, "stdout")
    if libc.fileno(stream) == _STANDARD_OUTPUT:
        stream.value = ctypes.c_void_p.in_dll(libc, "stderr").value


def send_c_output_to_file(path: Path) -> None:
    """Make ``printf`` of every C library in this process write to ``path``, which is begun anew.

    Side effect: for the rest of the process. Lines are written at once, for these libraries end in ``abort``.
    Raises: OSError when the file cannot be written.
    """
    path.open("wb").close()
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fopen(str(path).encode(), b"a"))
    libc.setvbuf(stream, None, _LINE_BUFFERED, ctypes.c_size_t(0))
    ctypes.c_void_p.in_dll(libc, "stdout").value = stream.value
