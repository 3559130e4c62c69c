"""Write files so that each is complete or absent, even after a power failure.

A file is written beside its place, brought to the disk, and renamed; then the folder is brought to the disk
too, so that what is recorded of a file afterwards is never newer than the file itself.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["move_whole", "whole_file", "write_json", "write_whole"]

_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})
"""What file systems answer that cannot bring a folder to the disk, some of them networked."""
_FROM_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


@contextmanager
def whole_file(path: Path) -> Generator[Path, None, None]:
    """Give a file to write beside ``path``, which gets that name at the end; on a failure it is removed.

    Raises: OSError when the disk cannot take it.
    """
    # Two processes may write to one place: each has a file of its own, and the later one stays.
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        move_whole(part, path)
    except BaseException as error:
        if isinstance(error, OSError) and (error.filename == str(part) or error.errno in _FROM_DISK):
            error.filename = str(path)  # the name that a user knows; where writing fails there is none
        with suppress(OSError):
            part.unlink()
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file, text as UTF-8.

    Raises: OSError when the disk cannot take it.
    """
    with whole_file(path) as part:
        part.write_bytes(content.encode() if isinstance(content, str) else content)


def write_json(path: Path, values: Mapping[str, object], *, ensure_ascii: bool = True) -> None:
    """Write a JSON object; without ``ensure_ascii`` other letters than ASCII stay as they are.

    Raises: OSError when the disk cannot take it.
    """
    write_whole(path, json.dumps(values, indent=2, ensure_ascii=ensure_ascii) + "\n")


def move_whole(source: Path, target: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk and give it its name on the same disk.

    Raises: OSError when the disk cannot take it.
    """
    if source.is_dir():
        for path in source.rglob("*"):
            if path.is_file() or path.is_dir():
                _sync(path)
    _sync(source)
    source.replace(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    try:
        _sync_descriptor(path)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC or not path.is_dir():
            raise


def _sync_descriptor(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
