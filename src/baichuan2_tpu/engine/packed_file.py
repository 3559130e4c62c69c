"""Weights as the kernels read them, kept in the user's cache so that the next start maps them.

Packing a 7B takes seconds; mapping what was packed before takes none, and processes share the memory. A file
is trusted only while the checkpoint is what it was packed from: its path, and every file's size, times and
inode.
Not here: the packed layout (``native/layout/packed_matrix.h``).
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu import _native
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.fetch.cache import cache_folder
from baichuan2_tpu.files import hash_blocks, locked_folder, open_regular, parse_json, whole_file

__all__ = ["ByteProgress", "PackedFile"]

ByteProgress = Callable[[int, int], None]
"""Is called with the bytes done and all bytes."""

_MAGIC = b"baichuan2-tpu packed weights\n"
_HEADER_BYTES = 2 << 20  # the matrices begin on a huge page
_LEAST_BYTES = 256 << 20  # smaller models are packed faster than they are looked up
_FREE_BYTES = 2 << 30  # that a disk keeps
_WRITE_BYTES = 8 << 20  # file systems with large folios then keep huge pages
_MAP_BYTES = 256 << 20  # between two calls of progress
_MADV_POPULATE_READ = 22  # Linux 5.14; the module mmap has no name for it
_OTHERS_WRITE = 0o022
_SUFFIX = ".packed"
_NAME_CHARACTERS = 48  # of a checkpoint's name; a file's has 255 bytes at most
_HARDWARE_POISON = 133  # EHWPOISON of Linux
_UNREADABLE = frozenset({errno.EFAULT, errno.EIO, _HARDWARE_POISON})
"""What madvise answers where to touch the pages would end the process with SIGBUS."""


class PackedFile:
    """The place in the cache of one checkpoint's packed weights.

    ``files`` are all files of the checkpoint that the weights depend on.
    """

    def __init__(self, checkpoint: Path, files: Iterable[Path]) -> None:
        folder = checkpoint.resolve()
        digest = hash_blocks([os.fsencode(folder)])[:12]
        place = (cache_folder() / "packed").resolve()  # it may be a link to a larger disk
        self.path = place / f"{folder.name[:_NAME_CHARACTERS]}-{digest}{_SUFFIX}"
        self._header = _make_header(folder, files)

    def find(self, progress: ByteProgress | None = None) -> NDArray[np.uint8] | None:
        """Return the packed weights as read-only pages of the file; None where it is missing or outdated.

        A file that another user owns, that others can write, or that the disk cannot read is passed over.
        Side effect: the pages are read from the disk where they are not in memory yet.
        """
        try:
            with open_regular(self.path) as file:
                if not _is_ours(file.fileno()) or file.read(len(self._header)) != self._header:
                    return None
                pages = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except (OSError, ValueError):  # ValueError: an empty file
            return None
        if len(pages) <= _HEADER_BYTES or not _populate(pages, progress):
            return None
        return np.frombuffer(pages, np.uint8, offset=_HEADER_BYTES)

    def keep(self, parts: Sequence[NDArray[np.uint8]], progress: ByteProgress | None = None) -> str | None:
        """Write the packed weights, unless they are small, and return why they could not be kept, or None.

        Side effect: an older file of this checkpoint is replaced; files of checkpoints that are gone, and of
        starts that were killed, are removed.
        """
        total = _HEADER_BYTES + sum(_padded(part.size) for part in parts)
        if total < _LEAST_BYTES:
            return None
        try:
            with locked_folder(self.path.parent):
                self._clear_away()
                free = shutil.disk_usage(self.path.parent).free
                if free < total + _FREE_BYTES:
                    need = (total + _FREE_BYTES) / 1e9
                    return f"{self.path.parent} has {free / 1e9:.1f} GB free and needs {need:.1f}"
                with whole_file(self.path) as part:
                    _write(part, self._header, parts, progress)
        except OSError as error:
            return f"{self.path}: {error.strerror or error}"
        except RequestError as error:  # another process writes there, or the folder is not ours
            return str(error).rpartition("; ")[0]  # what follows is for who chose the folder
        return None

    def _clear_away(self) -> None:
        for path in self.path.parent.iterdir():
            is_stale = path == self.path or (path.suffix == _SUFFIX and _is_gone(_checkpoint_of(path)))
            if is_stale or path.suffix == ".part":
                with suppress(OSError):
                    path.unlink()


def _make_header(checkpoint: Path, files: Iterable[Path]) -> bytes:
    """Return the first bytes of a file: what the weights were packed from, and by which layout."""
    sources: list[list[object]] = []
    for path in files:
        status = path.stat()
        sources.append(
            [path.name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
        )
    values = {"checkpoint": str(checkpoint), "layout": _native.PACKED_LAYOUT, "sources": sources}
    return _MAGIC + json.dumps(values).encode() + b"\n"


def _checkpoint_of(path: Path) -> Path:
    """Return what a file was packed from; a path that is none where its header cannot be read."""
    with suppress(OSError, ValueError), open_regular(path) as file:
        if file.readline(len(_MAGIC)) == _MAGIC:
            return Path(str(parse_json(file.readline(_HEADER_BYTES))["checkpoint"]))
    return path


def _is_gone(checkpoint: Path) -> bool:
    try:
        return not checkpoint.is_dir()
    except OSError:  # it lies where this user may not look
        return False


def _is_ours(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & _OTHERS_WRITE


def _padded(nbytes: int) -> int:
    return -(-nbytes // _native.PART_ALIGNMENT) * _native.PART_ALIGNMENT


def _write(
    path: Path, header: bytes, parts: Sequence[NDArray[np.uint8]], progress: ByteProgress | None
) -> None:
    total, done = sum(_padded(part.size) for part in parts), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        file.write(header)
        for part in parts:
            file.seek(_HEADER_BYTES + done)
            for start in range(0, part.size, _WRITE_BYTES):
                block = part[start : start + _WRITE_BYTES].data
                while block:
                    block = block[file.write(block) :]
                if progress is not None:
                    progress(done + start, total)
            done += _padded(part.size)
        file.truncate(_HEADER_BYTES + total)
    if progress is not None:
        progress(total, total)


def _populate(pages: mmap.mmap, progress: ByteProgress | None) -> bool:
    """Bring a mapped file into memory, on huge pages where the system has them for files.

    Returns False where the disk cannot read it.
    """
    with suppress(OSError):  # hints: their failure changes speed only
        pages.madvise(mmap.MADV_HUGEPAGE)
    for start in range(0, len(pages), _MAP_BYTES):
        try:
            pages.madvise(_MADV_POPULATE_READ, start, min(_MAP_BYTES, len(pages) - start))
        except OSError as error:  # others mean an older system
            if error.errno in _UNREADABLE:
                return False
        if progress is not None:
            progress(min(start + _MAP_BYTES, len(pages)), len(pages))
    return True
