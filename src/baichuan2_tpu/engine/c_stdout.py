"""Keep what C libraries print away from standard output, which holds a program's answer and nothing else.

The vendor's libraries print with ``printf``, from threads of their own too. So not the file descriptor is
turned, which Python shares, but the C library's ``stdout`` variable, once for the whole process.
Source: ``stdout`` is an assignable lvalue in glibc (its manual, "Standard Streams").
"""

from __future__ import annotations

import ctypes

__all__ = ["send_c_output_to_stderr"]


def send_c_output_to_stderr() -> None:
    """Make ``printf`` of every C library in this process write to standard error.

    Side effect: for the rest of the process; Python's own ``sys.stdout`` is not touched. Calling it twice is
    allowed.
    """
    libc = ctypes.CDLL(None)
    error_stream = ctypes.c_void_p.in_dll(libc, "stderr").value
    ctypes.c_void_p.in_dll(libc, "stdout").value = error_stream
