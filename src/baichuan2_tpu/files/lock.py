"""A folder in which one process works at a time and leaves what is finished for the next.

Not here: what lies in it (``quantize``, ``compile``, ``fetch``, ``toolchain``).
"""

from __future__ import annotations

import fcntl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from baichuan2_tpu.errors import RequestError

__all__ = ["LOCK_NAME", "locked_folder"]

LOCK_NAME = "lock"
"""The file that shows whose folder it is; the lock on it ends with the process."""


@contextmanager
def locked_folder(folder: Path) -> Generator[None, None, None]:
    """Make a folder and hold it against other processes.

    Raises: RequestError when another one is at work there, or it is not ours, or cannot be made.
    """
    with _make(folder) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RequestError(f"{folder} is being written by another process; wait for it") from error
        yield


def _make(folder: Path) -> TextIO:
    """Make a folder, or check that one of that name is ours, and open its lock; leftovers will be removed."""
    if folder.is_symlink():
        raise RequestError(f"{folder} is a link to {folder.resolve()}; remove it or name another destination")
    lock = folder / LOCK_NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_ours = (lock.is_file() and not lock.is_symlink()) or not any(folder.iterdir())
        if is_ours:
            return lock.open("a")
    except OSError as error:
        raise RequestError(
            f"cannot make the directory {folder}: {error.strerror}; name a destination you can write to"
        ) from error
    raise RequestError(f"{folder} holds files of something else; move it away or name another destination")
