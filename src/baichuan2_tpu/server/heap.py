"""The C heap of the server's process, which keeps what it was once given in as many arenas as threads asked.

Source: mallopt(3).
"""

from __future__ import annotations

import ctypes

__all__ = ["limit_arenas"]

_M_ARENA_MAX = -8
_ARENAS = 2


def limit_arenas() -> None:
    """Let all threads share two arenas, so that memory freed by one is used by the others.

    Otherwise glibc gives every thread that prepares a request an arena, up to eight per processor, and a
    prompt of megabytes leaves its holes in each. The engine allocates nothing while it computes.
    Side effect: for the whole process; nothing where the C library has no ``mallopt``, as in musl.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
