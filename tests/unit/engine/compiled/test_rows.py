"""Rows of the history: never given to two that do not share a token, never lost, the lowest first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baichuan2_tpu.engine.base import RowUse
from baichuan2_tpu.engine.compiled.rows import FreeRuns, RowAllocator, Run

ROWS = 24


def row_numbers(rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int32)


class Allocations(RuleBasedStateMachine):
    """Sequences that take, share and release rows, beside a list of owners for every row."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = RowAllocator(ROWS)
        self.held: list[list[int]] = [[], [], []]

    def owners(self) -> list[int]:
        return [sum(row in rows for rows in self.held) for row in range(ROWS)]

    @rule(who=st.integers(0, 2), count=st.integers(1, 9), padding=st.integers(0, 3))
    def take(self, who: int, count: int, padding: int) -> None:
        free = [row for row, owners in enumerate(self.owners()) if owners == 0]
        if count > len(free):
            return
        runs = self.allocator.free_runs()
        run = runs.lowest(count + padding)
        if run is not None:
            rows = run.rows()[:count].tolist()
            assert set(run.rows().tolist()) <= set(free)
        else:
            chosen = runs.fewest(count)
            assert len(chosen) == runs.number(count)
            rows = [row for part in chosen for row in part.rows().tolist()]
            assert len(chosen) == 1 or all(part.count < count + padding for part in chosen)
        assert len(rows) == count
        assert set(rows) <= set(free)
        first = len(self.held[who])
        self.allocator.take(row_numbers(rows), np.arange(first, first + count, dtype=np.int32))
        self.held[who] += rows

    @rule(who=st.integers(0, 2), source=st.integers(0, 2), length=st.integers(0, 9))
    def share(self, who: int, source: int, length: int) -> None:
        if who == source:
            return
        rows = self.held[source][:length]
        self.allocator.share(row_numbers(rows))
        self.allocator.release(row_numbers(self.held[who]))
        self.held[who] = list(rows)

    @rule(who=st.integers(0, 2), length=st.integers(0, 9))
    def truncate(self, who: int, length: int) -> None:
        self.allocator.release(row_numbers(self.held[who][length:]))
        del self.held[who][length:]

    @invariant()
    def owners_are_counted(self) -> None:
        owners = self.owners()
        used, shared = sum(count > 0 for count in owners), sum(count > 1 for count in owners)
        assert self.allocator.use == RowUse(total=ROWS, used=used, shared=shared)
        free = [row for row, count in enumerate(owners) if count == 0]
        runs = self.allocator.free_runs().fewest(len(free))
        assert sorted(row for run in runs for row in run.rows().tolist()) == free

    @invariant()
    def every_row_knows_its_position(self) -> None:
        positions = self.allocator.positions(ROWS)
        for rows in self.held:
            assert positions[rows].tolist() == list(range(len(rows)))
        assert not positions[[row for row, count in enumerate(self.owners()) if count == 0]].any()


TestAllocations = Allocations.TestCase


@given(st.lists(st.integers(0, 40), unique=True).map(sorted))
def test_runs_are_as_long_as_possible(rows: list[int]) -> None:
    runs = sorted(FreeRuns(np.array(rows, np.int64)).fewest(len(rows)), key=lambda run: run.start)
    assert [row for run in runs for row in run.rows().tolist()] == rows
    ends = [run.start + run.count for run in runs]
    assert all(end < run.start for end, run in zip(ends, runs[1:], strict=False))


FREE = FreeRuns(np.array([3, 4, *range(8, 13), *range(20, 29)]))


def test_the_lowest_run_that_is_long_enough_is_taken() -> None:
    assert FREE.lowest(2) == Run(3, 2)
    assert FREE.lowest(4) == Run(8, 4)
    assert FREE.lowest(10) is None


def test_scattered_rows_lie_in_as_few_runs_as_possible() -> None:
    assert FREE.fewest(12) == (Run(20, 9), Run(8, 3))
    assert FREE.fewest(9) == (Run(20, 9),)
    assert FREE.fewest(16) == (Run(20, 9), Run(8, 5), Run(3, 2))
    assert FREE.fewest(0) == ()


def test_a_launch_reaches_behind_all_rows_in_use_and_the_run_that_it_fills() -> None:
    allocator = RowAllocator(24)
    assert [allocator.reach(count) for count in (1, 16, 24)] == [1, 16, 24]
    rows = row_numbers([0, 1, 2, 3, 8, 9])
    allocator.take(rows, rows)
    assert [allocator.reach(count) for count in (1, 4, 5, 14)] == [10, 10, 15, 24]
    assert allocator.reach(15) == 24, "no run is so long: new rows may be scattered over all"


def test_giving_a_row_away_twice_is_a_fault_of_our_own() -> None:
    allocator = RowAllocator(4)
    allocator.take(row_numbers([1, 2]), row_numbers([0, 1]))
    with pytest.raises(AssertionError, match="have an owner already"):
        allocator.take(row_numbers([2, 3]), row_numbers([0, 1]))
    with pytest.raises(AssertionError, match="have no owner"):
        allocator.release(row_numbers([0]))
