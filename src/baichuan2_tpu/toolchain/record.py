"""The record of an installation: what is in it, from which wheel, and every file's size and sha256.

It is written last, into a folder that gets its final name after that: a folder without it is no
installation. Not here: making one (``install``), finding one (``locate``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from typing_extensions import Self

from baichuan2_tpu.manifest import FileDigest, digest_file

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
            values = json.loads((root / _NAME).read_text("utf-8"))
            if values.pop("format") != _FORMAT:
                return None
            values["files"] = {name: FileDigest(**digest) for name, digest in values["files"].items()}
            return cls(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, root: Path) -> None:
        """Write the record into ``root``."""
        text = json.dumps({"format": _FORMAT} | asdict(self), indent=1)
        (root / _NAME).write_text(text + "\n", "utf-8")

    @property
    def nbytes(self) -> int:
        """Size of all files together."""
        return sum(file.nbytes for file in self.files.values())

    def first_missing(self, root: Path) -> str | None:
        """Name the first file that is absent or has another size; None when all are there."""
        for name, wanted in self.files.items():
            path = root / name
            if not path.is_file() or path.stat().st_size != wanted.nbytes:
                return name
        return None

    def first_damaged(self, root: Path) -> str | None:
        """Name the first file that is absent or differs in any byte; None when all are right."""
        missing = self.first_missing(root)
        if missing is not None:
            return missing
        damaged = (name for name, wanted in self.files.items() if digest_file(root / name) != wanted)
        return next(damaged, None)
