"""Who owns which row of the history memory that all sequences of an engine share.

A row holds the keys and values of one token. It belongs to every sequence that holds this token: a common
prefix is owned by several and never copied. A row without an owner is free.
Not here: what the rows hold on the device (``history``), which sequence sees which rows (``step``).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import RowUse

__all__ = ["RowAllocator", "Run", "fewest_runs", "lowest_run", "split_runs"]


@dataclass(frozen=True, slots=True)
class Run:
    """``count`` consecutive rows from ``start`` on."""

    start: int
    count: int

    def rows(self) -> NDArray[np.int32]:
        """Return the numbers of the rows."""
        return np.arange(self.start, self.start + self.count, dtype=np.int32)


class RowAllocator:
    """Counts the owners of ``rows`` rows, and remembers the position of each row's token in its sequence."""

    def __init__(self, rows: int) -> None:
        self._owners = np.zeros(rows, np.int32)
        self._positions = np.zeros(rows, np.int32)

    @property
    def use(self) -> RowUse:
        """How many rows there are, have an owner, and have several."""
        used, shared = (int(np.count_nonzero(self._owners > owners)) for owners in (0, 1))
        return RowUse(total=len(self._owners), used=used, shared=shared)

    def positions(self, count: int) -> NDArray[np.int32]:
        """Return the positions of the tokens in the first ``count`` rows; 0 for a free row."""
        return np.where(self._owners[:count] > 0, self._positions[:count], np.int32(0))

    def free_runs(self) -> list[Run]:
        """Return all free rows in runs as long as possible, the lowest first."""
        return split_runs(np.flatnonzero(self._owners == 0))

    def take(self, rows: NDArray[np.int32], positions: NDArray[np.int32]) -> None:
        """Give free rows their first owner. Shapes: rows, positions (T,)."""
        if self._owners[rows].any():
            raise AssertionError(f"rows {rows[self._owners[rows] > 0]} have an owner already")
        self._owners[rows] = 1
        self._positions[rows] = positions

    def share(self, rows: NDArray[np.int32]) -> None:
        """Add an owner to rows that have one."""
        self._owners[rows] += 1

    def release(self, rows: NDArray[np.int32]) -> None:
        """Take one owner from each of these rows; those that have none left are free."""
        if not self._owners[rows].all():
            raise AssertionError(f"rows {rows[self._owners[rows] == 0]} have no owner")
        self._owners[rows] -= 1


def lowest_run(runs: Iterable[Run], count: int) -> Run | None:
    """Return ``count`` rows at the start of the first run that is long enough, or None."""
    return next((Run(run.start, count) for run in runs if run.count >= count), None)


def fewest_runs(runs: Iterable[Run], count: int) -> tuple[Run, ...]:
    """Return ``count`` rows in as few of the runs as possible, the longest first; there must be as many."""
    chosen: list[Run] = []
    for run in sorted(runs, key=lambda run: -run.count):
        if count == 0:
            break
        chosen.append(Run(run.start, min(run.count, count)))
        count -= chosen[-1].count
    return tuple(chosen)


def split_runs(rows: NDArray[np.integer[Any]]) -> list[Run]:
    """Split ascending row numbers into runs of consecutive ones."""
    if not len(rows):
        return []
    starts = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1])
    counts = np.diff(np.concatenate([starts, [len(rows)]]))
    return [Run(int(rows[start]), int(count)) for start, count in zip(starts, counts, strict=True)]
