"""Who owns which row of the history memory that all sequences of an engine share.

A row holds the keys and values of one token. It belongs to every sequence that holds this token: a common
prefix is owned by several and never copied. A row without an owner is free.
Not here: what the rows hold on the device (``history``), which sequence sees which rows (``step``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import RowUse

__all__ = ["FreeRuns", "RowAllocator", "Run"]


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` consecutive rows from ``start`` on."""

    start: int
    count: int

    @property
    def end(self) -> int:
        """The row behind the last."""
        return self.start + self.count

    def rows(self) -> NDArray[np.int32]:
        """Return the numbers of the rows."""
        return np.arange(self.start, self.start + self.count, dtype=np.int32)


class RowAllocator:
    """Counts the owners of ``rows`` rows, and remembers the position of each row's token in its sequence."""

    def __init__(self, rows: int) -> None:
        self._owners = np.zeros(rows, np.int32)
        self._positions = np.zeros(rows, np.int32)
        self._free_runs: FreeRuns | None = None  # until rows are taken or released

    @property
    def use(self) -> RowUse:
        """How many rows there are, have an owner, and have several."""
        used, shared = (int(np.count_nonzero(self._owners > owners)) for owners in (0, 1))
        return RowUse(total=len(self._owners), used=used, shared=shared)

    @property
    def end(self) -> int:
        """The row from which on all are free."""
        owned = np.flatnonzero(self._owners)
        return int(owned[-1]) + 1 if len(owned) else 0

    def reach(self, count: int) -> int:
        """Return the row from which on all are free once the lowest run of ``count`` rows is taken.

        Where no run is so long, new rows may come to lie anywhere: then it is the number of all rows.
        """
        run = self.free_runs().lowest(count)
        return max(self.end, run.end) if run else len(self._owners)

    def positions(self, count: int) -> NDArray[np.int32]:
        """Return the positions of the tokens in the first ``count`` rows; 0 for a free row."""
        return np.where(self._owners[:count] > 0, self._positions[:count], np.int32(0))

    def free_runs(self) -> FreeRuns:
        """Return all free rows."""
        if self._free_runs is None:
            self._free_runs = FreeRuns(np.flatnonzero(self._owners == 0))
        return self._free_runs

    def take(self, rows: NDArray[np.int32], positions: NDArray[np.int32]) -> None:
        """Give free rows their first owner. Shapes: rows, positions (T,)."""
        if self._owners[rows].any():
            raise AssertionError(f"rows {rows[self._owners[rows] > 0]} have an owner already")
        self._owners[rows] = 1
        self._free_runs = None
        self._positions[rows] = positions

    def share(self, rows: NDArray[np.int32]) -> None:
        """Add an owner to rows that have one."""
        self._owners[rows] += 1

    def release(self, rows: NDArray[np.int32]) -> None:
        """Take one owner from each of these rows; those that have none left are free."""
        if not self._owners[rows].all():
            raise AssertionError(f"rows {rows[self._owners[rows] == 0]} have no owner")
        self._owners[rows] -= 1
        self._free_runs = None


class FreeRuns:
    """Row numbers in runs as long as possible. Shapes: rows (free rows,), ascending."""

    def __init__(self, rows: NDArray[np.integer[Any]]) -> None:
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
        self._starts = rows[starts]
        self._counts = np.diff(starts, append=len(rows))
        self._longest_first = np.argsort(-self._counts, kind="stable")
        self._covered = np.cumsum(self._counts[self._longest_first])

    def lowest(self, count: int) -> Run | None:
        """Return ``count`` rows at the start of the first run that is long enough, or None."""
        places = np.flatnonzero(self._counts >= count)
        return Run(int(self._starts[places[0]]), count) if len(places) else None

    def number(self, count: int) -> int:
        """Return in how few runs ``count`` rows lie; there must be as many."""
        return int(np.searchsorted(self._covered, count)) + 1 if count else 0

    def fewest(self, count: int) -> tuple[Run, ...]:
        """Return ``count`` rows in as few runs as possible, the longest first; there must be as many."""
        places = self._longest_first[: self.number(count)]
        runs = [Run(int(self._starts[place]), int(self._counts[place])) for place in places]
        if runs:
            surplus = int(self._covered[len(runs) - 1]) - count
            runs[-1] = Run(runs[-1].start, runs[-1].count - surplus)
        return tuple(runs)
