"""Digests of files as the hubs give them: sha256 of large files, git's object name of small ones.

Source: git-hash-object(1): sha1 of the text "blob SIZE", a zero byte and the content.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

__all__ = ["Digest", "DigestKind", "hash_file"]

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


def hash_file(path: Path, kinds: Iterable[DigestKind]) -> dict[DigestKind, str]:
    """Read a file once and return its digests of those kinds."""
    hashes: dict[DigestKind, _Running] = {kind: _start(kind, path.stat().st_size) for kind in kinds}
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            for running in hashes.values():
                running.update(block)
    return {kind: running.hexdigest() for kind, running in hashes.items()}


class _Running(Protocol):
    """A hash that is being computed."""

    def update(self, block: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


def _start(kind: DigestKind, nbytes: int) -> _Running:
    """Return a running hash; git's has seen what git puts in front of a file."""
    if kind == "sha256":
        return hashlib.sha256()
    return hashlib.sha1(f"blob {nbytes}\0".encode(), usedforsecurity=False)
