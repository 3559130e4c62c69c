"""How the tests of the command line see a command: its words go in, its outcome comes out."""

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Outcome", "Run"]


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended."""

    code: int | str | None
    out: str
    err: str


Run = Callable[..., Outcome]
