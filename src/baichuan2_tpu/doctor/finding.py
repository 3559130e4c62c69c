"""One line of a diagnosis: what was examined, what was seen, whether it is right, and what to do.

Not here: reading (``host``, ``tpu``), judging (``judge_*``), drawing (``cli.doctor``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

__all__ = ["Finding", "Status"]

Status = Literal["pass", "warn", "fail", "info"]
"""``fail`` stops what the machine is asked to do; ``warn`` does not; ``info`` is neither right nor wrong."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was seen of one thing. ``allowed`` and ``next_step`` are empty where they do not apply."""

    name: str
    status: Status
    value: str
    allowed: str = ""
    next_step: Sequence[str] = ()
    """Lines to follow in order; a line that begins with "$ " is a command."""

    def to_json(self) -> dict[str, object]:
        """Return the finding by the names of its fields."""
        return {
            "name": self.name,
            "status": self.status,
            "value": self.value,
            "allowed": self.allowed,
            "next_step": list(self.next_step),
        }
