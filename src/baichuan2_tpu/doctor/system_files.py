"""The files of a machine, below a root: what can be read of them, and why not where it cannot.

With another root than "/" a recorded tree is read. Nothing here raises for what it finds: a file that is
missing, needs root or holds nonsense is told as such. Not here: what a file means (one reader each).
"""

from __future__ import annotations

import grp
import os
import pwd
import re
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

__all__ = ["MISSING", "NEEDS_ROOT", "Machine", "Node", "Seen"]

MISSING = "is missing"
NEEDS_ROOT = "needs root to be read"

_MOST_BYTES = 1 << 22
"""Of a file that is read; the largest here, /proc/cpuinfo, has 1.5 kB a thread."""
_SHOWN_CHARACTERS = 40

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Seen(Generic[Value]):
    """What one file holds: a value, or the reason why there is none."""

    path: str
    value: Value | None = None
    problem: str = ""

    @property
    def told(self) -> str:
        """The path and the problem, for a reader of the report."""
        return f"{self.path} {self.problem}"


@dataclass(frozen=True, slots=True)
class Node:
    """A device node. ``rights`` are as ls writes them; ``is_usable`` says whether we may read and write."""

    rights: str
    owner: str
    group: str
    is_usable: bool


class Machine:
    """The files below ``root``; paths are given as on the machine itself."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def content(self, path: str) -> Seen[bytes]:
        """Return the bytes of a file, the first 4 MiB at most."""
        try:
            with self._place(path).open("rb") as file:
                return Seen(path, file.read(_MOST_BYTES))
        except OSError as error:
            return Seen(path, problem=_reason(error))

    def parsed(self, path: str, parse: Callable[[str], Value | None]) -> Seen[Value]:
        """Return what ``parse`` makes of a file's text; None from it means that the text is odd."""
        content = self.content(path)
        if content.value is None:
            return Seen(path, problem=content.problem)
        text = content.value.decode("utf-8", "replace").replace("\0", "").strip()
        value = parse(text)
        return Seen(path, value) if value is not None else Seen(path, problem=f"holds {_shortened(text)}")

    def link(self, path: str) -> Seen[str]:
        """Return where a symbolic link points to."""
        try:
            return Seen(path, str(self._place(path).readlink()))
        except OSError as error:
            return Seen(path, problem=_reason(error))

    def matches(self, pattern: str) -> list[str]:
        """Return the paths that a pattern names, numbers in their order."""
        found = [f"/{one.relative_to(self._root)}" for one in self._root.glob(pattern.lstrip("/"))]
        return sorted(found, key=_natural)

    def node(self, path: str) -> Seen[Node]:
        """Return who may use a device node."""
        place = self._place(path)
        try:
            found = place.stat()
        except OSError as error:
            return Seen(path, problem=_reason(error))
        if not stat.S_ISCHR(found.st_mode):
            return Seen(path, problem="is no device node")
        return Seen(path, _describe_node(found, is_usable=os.access(place, os.R_OK | os.W_OK)))

    def _place(self, path: str) -> Path:
        return self._root / path.lstrip("/")


def _describe_node(found: os.stat_result, *, is_usable: bool) -> Node:
    return Node(stat.filemode(found.st_mode), _owner(found.st_uid), _group(found.st_gid), is_usable)


def _owner(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MISSING
    if isinstance(error, PermissionError):
        return NEEDS_ROOT
    return f"cannot be read ({error.strerror})"


def _shortened(text: str) -> str:
    """Quote the beginning of a text, unprintable characters escaped."""
    return repr(text[:_SHOWN_CHARACTERS]) + ("…" if len(text) > _SHOWN_CHARACTERS else "")


def _natural(path: str) -> list[tuple[str, int]]:
    """Order bm-sophon2 before bm-sophon10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", path)]
