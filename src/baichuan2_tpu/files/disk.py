"""Full disks: one plain error for all that is written.

Not here: writing (``writing``); the check before any work, which knows what is needed (``quantize.driver``,
``compile.driver``, ``fetch.models``).
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from baichuan2_tpu.errors import Baichuan2Error

__all__ = ["disk_errors", "is_full"]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LEFT_BYTES = 1 << 20  # less than a block of any program here


@contextmanager
def disk_errors(folder: Path, error: type[Baichuan2Error]) -> Generator[None, None, None]:
    """Turn a full disk, while something is written below ``folder``, into an error that says what to do.

    Raises: ``error``.
    """
    try:
        yield
    except OSError as cause:
        if not _is_about_space(cause):
            raise
        free = shutil.disk_usage(folder).free
        raise error(
            f"{folder}: {cause.strerror or 'No space left on device'}, {free / 1e9:.2f} GB are free; "
            "what is finished is kept: free some space and run the same command again"
        ) from cause


def is_full(folder: Path) -> bool:
    """Tell whether a program that failed may have failed for want of space."""
    return shutil.disk_usage(folder).free < _LEFT_BYTES


def _is_about_space(error: OSError) -> bool:
    # numpy's tofile keeps no number: "1024 requested and 512 written".
    return error.errno in _FULL or (error.errno is None and " requested and " in str(error))
