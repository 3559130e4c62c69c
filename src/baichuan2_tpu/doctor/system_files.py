"""The files of a machine, below a root: what can be read of them, and why not where it cannot.

With another root than "/" a recorded tree is read. Nothing here raises because of a file: one that is
missing, needs root or contains nonsense gives a ``Seen`` with the problem. Not here: what a file means
(``host``, ``tpu``, ``tpu_memory``).
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
NEEDS_ROOT = "can be read by root only"

_MOST_BYTES = 1 << 22
"""Read of one file at most; the largest, /proc/cpuinfo, has 1.5 kB per thread."""
_SHOWN_CHARACTERS = 40

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Seen(Generic[Value]):
    """What one file holds: a value, or the reason why there is none."""

    path: str
    value: Value | None = None
    problem: str = ""

    @property
    def explanation(self) -> str:
        """The path and the problem, as the report shows them."""
        return f"{self.path} {self.problem}"


@dataclass(frozen=True, slots=True)
class Node:
    """A device node. ``rights`` as ``ls -l`` writes them; ``is_usable``: this user may read and write."""

    rights: str
    owner: str
    group: str
    is_usable: bool


class Machine:
    """The files below ``root``; paths are given as on the machine itself."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root

    def read_bytes(self, path: str) -> Seen[bytes]:
        """Return the bytes of a file, the first 4 MiB at most."""
        try:
            with self._place(path).open("rb") as file:
                return Seen(path, file.read(_MOST_BYTES))
        except OSError as error:
            return Seen(path, problem=_explain(error))

    def parse(self, path: str, parse: Callable[[str], Value | None]) -> Seen[Value]:
        """Return what ``parse`` makes of a file's text; None from it means a text that is not understood."""
        content = self.read_bytes(path)
        if content.value is None:
            return Seen(path, problem=content.problem)
        text = content.value.decode("utf-8", "replace").replace("\0", "").strip()
        value = parse(text)
        return Seen(path, value) if value is not None else Seen(path, problem=f"contains {_quote(text)}")

    def read_link(self, path: str) -> Seen[str]:
        """Return where a symbolic link points."""
        try:
            return Seen(path, str(self._place(path).readlink()))
        except OSError as error:
            return Seen(path, problem=_explain(error))

    def find(self, pattern: str) -> list[str]:
        """Return the paths that match a pattern, numbers in their order."""
        places = self._root.glob(pattern.lstrip("/"))
        return sorted((f"/{place.relative_to(self._root)}" for place in places), key=_natural_key)

    def read_node(self, path: str) -> Seen[Node]:
        """Return a device node's rights, and whether we may use it."""
        place = self._place(path)
        try:
            status = place.stat()
        except OSError as error:
            return Seen(path, problem=_explain(error))
        if not stat.S_ISCHR(status.st_mode):
            return Seen(path, problem="is not a device node")
        return Seen(path, _describe_node(status, is_usable=os.access(place, os.R_OK | os.W_OK)))

    def _place(self, path: str) -> Path:
        return self._root / path.lstrip("/")


def _describe_node(status: os.stat_result, *, is_usable: bool) -> Node:
    rights = stat.filemode(status.st_mode)
    return Node(rights, _user_name(status.st_uid), _group_name(status.st_gid), is_usable)


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)


def _explain(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return MISSING
    if isinstance(error, PermissionError):
        return NEEDS_ROOT
    return f"cannot be read ({error.strerror})"


def _quote(text: str) -> str:
    """Quote the beginning of a text, with unprintable characters escaped."""
    return repr(text[:_SHOWN_CHARACTERS]) + ("…" if len(text) > _SHOWN_CHARACTERS else "")


def _natural_key(path: str) -> list[tuple[str, int]]:
    """Return a sort key that puts bm-sophon2 before bm-sophon10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d*)", path)]
