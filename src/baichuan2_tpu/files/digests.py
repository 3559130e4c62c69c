"""Digests of files: sha256 everywhere, and git's object name where a hub lists nothing else.

Source: git-hash-object(1): sha1 of the text "blob SIZE", a zero byte and the content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

__all__ = ["Digest", "DigestKind", "FileDigest", "digest_file", "hash_blocks", "hash_file"]

DigestKind = Literal["sha256", "git"]

_BLOCK_BYTES = 1 << 20
_FORMS: Mapping[DigestKind, re.Pattern[str]] = {
    "sha256": re.compile(r"[0-9a-f]{64}"),
    "git": re.compile(r"[0-9a-f]{40}"),
}


@dataclass(frozen=True, slots=True)
class Digest:
    """What a file must hash to, in lower hexadecimal."""

    kind: DigestKind
    value: str

    @property
    def is_formed(self) -> bool:
        """Tell whether it can be a digest of its kind at all."""
        return _FORMS[self.kind].fullmatch(self.value) is not None

    def __str__(self) -> str:
        return f"{self.kind} {self.value}"


@dataclass(frozen=True, slots=True)
class FileDigest:
    """Size and sha256 of one file."""

    nbytes: int
    sha256: str

    def is_at(self, path: Path) -> bool:
        """Tell whether a file is there and is this one; it is read only where its size is right."""
        if not path.is_file() or path.stat().st_size != self.nbytes:
            return False
        return digest_file(path) == self


def digest_file(path: Path) -> FileDigest:
    """Read a file and return its size and sha256."""
    sha256 = hash_file(path)["sha256"]
    return FileDigest(path.stat().st_size, sha256)


def hash_file(path: Path, kinds: Iterable[DigestKind] = ("sha256",)) -> dict[DigestKind, str]:
    """Read a file once and return its digests of those kinds."""
    hashes: dict[DigestKind, _Hash] = {kind: _start(kind, path.stat().st_size) for kind in kinds}
    with path.open("rb") as file:
        return _finish(hashes, iter(partial(file.read, _BLOCK_BYTES), b""))


def hash_blocks(blocks: Iterable[bytes]) -> str:
    """Return the sha256 of blocks that follow each other."""
    return _finish({"sha256": hashlib.sha256()}, blocks)["sha256"]


class _Hash(Protocol):
    """A hash that is being computed."""

    def update(self, block: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def _start(kind: DigestKind, nbytes: int) -> _Hash:
    """Return a hash that has seen nothing of the file; git's has seen what git puts in front of it."""
    if kind == "sha256":
        return hashlib.sha256()
    return hashlib.sha1(f"blob {nbytes}\0".encode(), usedforsecurity=False)


def _finish(hashes: Mapping[DigestKind, _Hash], blocks: Iterable[bytes]) -> dict[DigestKind, str]:
    for block in blocks:
        for running in hashes.values():
            running.update(block)
    return {kind: running.hexdigest() for kind, running in hashes.items()}
