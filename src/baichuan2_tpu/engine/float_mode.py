"""Keep how this thread computes with floats, whatever a C library does to it.

The simulator makes the thread that starts it flush subnormal numbers to zero, and leaves it so: then numpy,
and the cpu engine beside it, would compute other numbers than before.
Source: ``fegetenv`` and ``fesetenv`` of C99; measured with the simulator of tpu_mlir 1.30.2.
"""

from __future__ import annotations

import ctypes
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["kept_float_mode"]

_ENVIRONMENT_BYTES = 64  # fenv_t has 32 on x86_64 and 8 on aarch64


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
