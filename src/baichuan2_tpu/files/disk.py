"""Full disks: one plain error for all that is written.

Not here: writing (``writing``); the check before any work, which knows what is needed (``quantize.driver``,
``compile.driver``, ``fetch.models``).
"""

from __future__ import annotations

import errno
import os
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
        state, remedy = _room(folder)
        raise error(
            f"{folder}: {cause.strerror or 'No space left on device'}, {state}; "
            f"what is finished is kept: {remedy} and run the same command again"
        ) from cause


def is_full(folder: Path) -> bool:
    """Tell whether a program that failed may have failed for want of space."""
    return shutil.disk_usage(folder).free < _LEFT_BYTES or _has_no_file_left(folder)


def _room(folder: Path) -> tuple[str, str]:
    """Return what of a disk is used up, and what to do about it."""
    if _has_no_file_left(folder):
        return "it has no room for another file (no inode is free)", "remove files there"
    return f"{shutil.disk_usage(folder).free / 1e9:.2f} GB are free", "free some space"


def _has_no_file_left(folder: Path) -> bool:
    status = os.statvfs(folder)
    return status.f_files > 0 and status.f_favail == 0  # some file systems count no files: 0 of 0


def _is_about_space(error: OSError) -> bool:
    # numpy's tofile keeps no number: "1024 requested and 512 written".
    return error.errno in _FULL or (error.errno is None and " requested and " in str(error))
