"""The record of an installation: what is in it, from which wheel, and every file's size and sha256.

It is written last, into a folder that gets its final name after that: a folder without it is not an
installation. Not here: making one (``install``), finding one (``locate``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from typing_extensions import Self

from baichuan2_tpu.errors import CompileError
from baichuan2_tpu.files import FileDigest, read_json, read_values, write_json

__all__ = ["Kind", "Record"]

Kind = Literal["compiler", "simulator"]

_NAME = "toolchain.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Record:
    """What an installation holds; "compiler" holds the simulator too."""

    kind: Kind
    version: str
    wheel_sha256: str
    files: Mapping[str, FileDigest]

    @classmethod
    def read(cls, root: Path) -> Self | None:
        """Return the record of the installation in ``root``; None where there is none that can be used."""
        try:
            values = read_json(root / _NAME, CompileError)
            if values.pop("format", None) != _FORMAT:
                return None
            record = read_values(cls, values)
        except (CompileError, ValueError):
            return None
        return record if all(_is_inside(name) for name in record.files) else None

    def write(self, root: Path) -> None:
        """Write the record into ``root``."""
        write_json(root / _NAME, {"format": _FORMAT} | asdict(self))

    @property
    def nbytes(self) -> int:
        """Size of all files together."""
        return sum(file.nbytes for file in self.files.values())

    def first_missing(self, root: Path) -> str | None:
        """Name the first file that is absent or has another size; None when all are there."""
        for name, digest in self.files.items():
            path = root / name
            if not path.is_file() or path.stat().st_size != digest.nbytes:
                return name
        return None

    def first_damaged(self, root: Path) -> str | None:
        """Name the first file that is absent or differs in any byte; None when all are right."""
        missing = self.first_missing(root)  # before anything is read: 283 MB take a while
        if missing is not None:
            return missing
        return next((name for name, digest in self.files.items() if not digest.is_at(root / name)), None)


def _is_inside(name: str) -> bool:
    """Tell whether a name leads to a file below the folder it is taken in."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and name.isprintable()
