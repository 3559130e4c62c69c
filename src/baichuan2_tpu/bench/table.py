"""The performance table that the vendor's sample shows for its builds, for whatever was measured here.

Not here: measuring (``processor``, ``bundle``).
Source: "程序性能" in the README of ``sample/Baichuan2`` of sophgo/sophon-demo: platform, model, first token
latency in seconds, tokens a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PerformanceRow", "performance_table"]

_HEADER = ("platform", "model", "bits", "first token (s)", "tokens a second")


@dataclass(frozen=True, slots=True)
class PerformanceRow:
    """One line of the table, all medians; ``bits`` None where a bmodel does not tell."""

    platform: str
    model: str
    bits: int | None
    first_token_s: float
    tok_per_s: float

    def cells(self) -> tuple[str, ...]:
        """Return the cells, with as many digits as the vendor's."""
        bits = "" if self.bits is None else str(self.bits)
        return self.platform, self.model, bits, f"{self.first_token_s:.3f}", f"{self.tok_per_s:.3f}"


def performance_table(rows: Sequence[PerformanceRow]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = [_HEADER, *(row.cells() for row in rows)]
    shown = [f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" for cells in lines]
    return [shown[0], "|---" * len(_HEADER) + "|", *shown[1:]]
