"""A file that is not complete yet, and the journal of its finished ranges.

``NAME.part`` has the full length from the beginning, with holes. The first line of ``NAME.part.journal`` says
which file it will be, every other line names one finished range. A range is written to the journal after its
bytes: a process that is killed leaves at most half a line, which is ignored. After a power failure a line may
stand for bytes that never reached the disk; the digest of the whole file finds that.
Not here: where bytes come from (``download``).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import threading
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.transfer.hubs import RemoteFile
from baichuan2_tpu.files import move_whole, read_bytes, write_whole

__all__ = ["PartFile", "Piece"]

_NUMBER = re.compile(r"[0-9]{1,19}")


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of bytes, ``stop`` not included."""

    start: int
    stop: int


class PartFile:
    """A part and its journal, open for threads that each write ranges of their own; a context manager.

    Side effect: a part of another file, or one whose journal cannot be read, is begun again.
    """

    def __init__(self, folder: Path, file: RemoteFile) -> None:
        self.path = folder / f"{file.name}.part"
        self._journal = folder / f"{file.name}.part.journal"
        self._head = json.dumps({"nbytes": file.nbytes, "digest": str(file.digest)})
        self._nbytes = file.nbytes
        self._lock = threading.Lock()
        self._is_closed = False
        self._finished = (
            _read_ranges(self._journal, self._head, self._nbytes) if self._is_full_length() else []
        )
        self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.ftruncate(self._descriptor, self._nbytes)
        self._write_journal()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def finished_bytes(self) -> int:
        """How much of the file is there."""
        return sum(piece.stop - piece.start for piece in self._finished)

    def missing(self, piece_bytes: int) -> list[Piece]:
        """Return what is not there yet, in pieces of at most that size."""
        pieces: list[Piece] = []
        position = 0
        for done in [
            *sorted(self._finished, key=lambda piece: piece.start),
            Piece(self._nbytes, self._nbytes),
        ]:
            starts = range(position, done.start, piece_bytes)
            pieces += [Piece(start, min(start + piece_bytes, done.start)) for start in starts]
            position = max(position, done.stop)
        return pieces

    def write(self, offset: int, block: bytes) -> None:
        """Write a block, unless the part is closed: then nothing is written any more."""
        with self._lock:
            view = memoryview(block)
            while view and not self._is_closed:
                written = os.pwrite(self._descriptor, view, offset)
                view, offset = view[written:], offset + written

    def add(self, piece: Piece) -> None:
        """Note a finished range."""
        with self._lock:
            if not self._is_closed:
                self._finished.append(piece)
                with self._journal.open("a", encoding="utf-8") as journal:
                    journal.write(f"{piece.start} {piece.stop}\n")

    def forget(self) -> None:
        """Begin again, in the same file."""
        with self._lock:
            self._finished.clear()
            self._write_journal()

    def discard(self) -> None:
        """Close it and remove it: what is there is not what is wanted."""
        self.close()
        self._journal.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def become(self, target: Path) -> None:
        """Give the part, whose content is proven, its name; on the disk before that."""
        self.close()
        move_whole(self.path, target)
        self._journal.unlink()

    def close(self) -> None:
        """Let go of the file; closing twice is allowed."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._descriptor)

    def _write_journal(self) -> None:
        """Begin the journal with the known ranges: half a line at its end would join with the next one."""
        lines = [self._head, *(f"{piece.start} {piece.stop}" for piece in self._finished)]
        write_whole(self._journal, "".join(f"{line}\n" for line in lines))

    def _is_full_length(self) -> bool:
        return self.path.is_file() and self.path.stat().st_size == self._nbytes


def _read_ranges(journal: Path, head: str, nbytes: int) -> list[Piece]:
    """Return the finished ranges of the same file; none when the journal is of another one, or damaged."""
    try:
        first, *lines = read_bytes(journal, FetchError).decode("utf-8").split("\n")
    except (FetchError, UnicodeDecodeError):
        return []
    if first != head:
        return []
    pieces: list[Piece] = []
    for line in lines[:-1]:  # behind the last line feed is nothing, or half a line
        numbers = [int(word) for word in line.split(" ") if _NUMBER.fullmatch(word)]
        if len(numbers) != 2 or not 0 <= numbers[0] < numbers[1] <= nbytes:
            return []
        pieces.append(Piece(*numbers))
    pieces.sort(key=lambda piece: piece.start)
    is_apart = all(piece.stop <= following.start for piece, following in itertools.pairwise(pieces))
    return pieces if is_apart else []
