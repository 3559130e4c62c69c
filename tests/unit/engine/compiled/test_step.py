"""A step is cut into launches in which every token has a row of its own, and one view serves the head."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.engine.compiled.net_plan import NetPlan, plan_nets
from baichuan2_tpu.engine.compiled.rows import RowAllocator
from baichuan2_tpu.engine.compiled.stage_costs import StageCosts
from baichuan2_tpu.engine.compiled.step import Launch, Step, Work
from baichuan2_tpu.manifest import Stage
from doubles.numpy_device import NumpyDevice
from models.random_model import float_weights, random_weights

MODEL = random_weights("grouped", 4)
FLOATS = float_weights(MODEL)
ROWS = 128


def plan_of(**options: object) -> NetPlan:
    options = {"context": ROWS, "stages": (1, 16, 32), "histories": (32,)} | options
    return plan_nets(NumpyDevice(MODEL.config, FLOATS, **options).nets)  # pyright: ignore[reportArgumentType]


OWN = plan_of()
SPARSE = replace(
    plan_of(histories=(32, 120)),
    stages=tuple(
        stage
        for stage in plan_of(histories=(32, 120)).stages
        if (stage.tokens, stage.history) not in {(16, 120), (16, 128)}
    ),
)
"""As bundles have them: long histories lack some stages, and the last is little longer than another."""

CONVERTER = plan_of(form="converter", stages=(1, 32), has_embedding=True)


class Memory:
    """An allocator with some rows in use, by a sequence of their own."""

    def __init__(self, plan: NetPlan, used: list[int]) -> None:
        self.plan = plan
        self.allocator = RowAllocator(plan.rows)
        rows = np.array(used, np.int32)
        self.allocator.take(rows, np.arange(len(rows), dtype=np.int32))
        self.used = rows

    def work(self, count: int, logit_rows: int, held: int = 0) -> Work:
        """Return new tokens of a sequence that holds the first of the rows in use."""
        return Work(
            self.used[:held],
            np.arange(1000, 1000 + held, dtype=np.int32),
            np.arange(count, dtype=np.int32),
            np.zeros((logit_rows, 0), np.float32),
        )

    def launches(self, works: list[Work]) -> list[Launch]:
        return list(Step(self.plan, StageCosts(self.plan), self.allocator, works).launches())


def replay(launches: list[Launch], works: list[Work], memory: Memory) -> None:
    """Run the launches on a memory that holds which token lies in which row, as nets fill and overwrite it.

    Behind the last row there is room for what the longest stages gather. Tokens are named by their work and
    place; None is anything.
    """
    rows: list[object] = [None] * (memory.plan.rows + 64)
    for number, row in enumerate(memory.used.tolist()):
        rows[row] = number
    owners: dict[int, object] = {row: rows[row] for row in memory.used.tolist()}
    for launch in launches:
        stage = launch.stage
        new: list[object] = [None] * stage.tokens
        for part in launch.parts:
            for number, place in enumerate(part.places.tolist()):
                new[place] = (works.index(part.work), part.start + number)
            seen = [rows[row] for row in part.visible.tolist()] if stage.history else []
            assert seen == [owners[row] for row in part.visible.tolist()][: len(seen)]
        assert max(owners, default=-1) < stage.history or not stage.history
        if stage.history:
            rows[stage.history : stage.history + stage.tokens] = new
        places = iter(range(launch.kept_from, stage.tokens))
        for run in launch.runs:
            gathered = range(stage.history, stage.history + stage.tokens) if stage.history else range(0)
            assert not set(gathered) & set(run.rows().tolist()), "what is copied must not overlap"
            for row in run.rows().tolist():
                place = next(places)
                rows[row] = new[place]
                if place < launch.count:
                    owners[row] = new[place]
    assert all(rows[row] == token for row, token in owners.items())


def check(launches: list[Launch], works: list[Work], memory: Memory) -> None:
    """Check that every token is computed once, behind those before it, and has a row of its own."""
    rows = [row for work in works for taken in work.rows for row in taken.tolist()]
    assert len(rows) == len(set(rows)) == sum(len(work.tokens) for work in works)
    assert not set(rows) & set(memory.used.tolist())
    for work in works:
        parts = [(launch, part) for launch in launches for part in launch.parts if part.work is work]
        tokens = [
            launch.tokens[place]
            for launch, part in parts
            for place in part.places[part.places >= launch.kept_from]
        ]
        assert tokens == work.tokens.tolist()
        for launch, part in parts:
            first = work.length + part.start
            assert launch.positions[part.places].tolist() == list(range(first, first + len(part.places)))
            assert not launch.stage.history or part.visible.max(initial=-1) < launch.stage.history
    replay(launches, works, memory)
    for launch in launches:
        heard = [
            place
            for part in launch.parts
            for number, place in enumerate(part.places)
            if part.start + number >= part.work.silent
        ]
        assert sorted(heard) == list(range(launch.count - launch.logit_rows, launch.count))
        written = [row for run in launch.runs for row in run.rows().tolist()]
        assert len(written) == (
            launch.stage.tokens if launch.is_in_place else launch.count - launch.kept_from
        )
        assert not set(written) & set(memory.used.tolist())


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Return rows in use, and of each sequence its new tokens, those with logits, and the tokens held."""
    used = draw(st.lists(st.integers(0, ROWS - 1), unique=True, max_size=ROWS - 1).map(sorted))
    free, works = ROWS - len(used), list[tuple[int, int, int]]()
    while free and len(works) < 6 and draw(st.booleans()):
        count = draw(st.integers(1, min(free, 60)))
        works.append((count, draw(st.integers(0, count)), draw(st.integers(0, len(used)))))
        free -= count
    return used, works


@pytest.mark.parametrize("plan", [OWN, SPARSE, CONVERTER], ids=["own", "sparse", "converter"])
@given(step=steps())
def test_whatever_fits_into_the_free_rows_is_launched(
    plan: NetPlan, step: tuple[list[int], list[tuple[int, int, int]]]
) -> None:
    memory = Memory(plan, step[0])
    works = [memory.work(*sizes) for sizes in step[1]]
    check(memory.launches(works), works, memory)
    for work in works:
        for rows in work.rows:
            memory.allocator.release(rows)
    assert memory.allocator.use.used == len(memory.used)


def test_all_sequences_go_into_one_launch_and_those_with_logits_lie_behind() -> None:
    memory = Memory(OWN, list(range(9)))
    works = [memory.work(5, 1), memory.work(1, 1, held=9), memory.work(7, 0), memory.work(3, 2)]
    (launch,) = memory.launches(works)
    check([launch], works, memory)
    assert (launch.stage.tokens, launch.stage.history, launch.logit_rows) == (16, 32, 4)
    assert launch.is_in_place
    assert launch.runs[0].start == 9


def test_a_stage_that_the_next_longer_history_lacks_is_not_taken_at_the_end_of_its_own() -> None:
    """Sixteen users at 2048 rows in use ended every step with a KeyError: 4096 rows have no stage of 16."""
    memory = Memory(SPARSE, list(range(30)))
    works = [memory.work(1, 1) for _ in range(8)]
    launches = memory.launches(works)
    check(launches, works, memory)
    assert [(launch.stage.tokens, launch.stage.history) for launch in launches] == [(32, 120)], (
        "16 tokens take the runs 30 to 46"
    )


def test_what_is_copied_does_not_overlap_what_the_net_gathers() -> None:
    """With a last history a little longer than the one before it, libbmrt refused to copy onto itself."""
    memory = Memory(SPARSE, list(range(118)))
    works = [memory.work(9, 1)]
    launches = memory.launches(works)
    check(launches, works, memory)
    assert [(launch.stage.history, launch.is_in_place) for launch in launches] == [(128, False)]


def test_rows_lie_as_low_as_they_can() -> None:
    memory = Memory(OWN, [*range(10), *range(30, 40)])
    (launch,) = memory.launches([memory.work(1, 1, held=2)])
    assert (launch.stage.tokens, launch.runs[0].start) == (1, 10)
    (launch,) = memory.launches([memory.work(12, 1, held=2)])
    assert launch.runs[0].start == 11, "16 rows fit between the two"


def test_scattered_free_rows_are_filled_by_copies_where_that_costs_less() -> None:
    memory = Memory(OWN, list(range(0, ROWS, 8)))  # runs of seven
    work = memory.work(14, 1)
    (launch,) = memory.launches([work])
    check([launch], [work], memory)
    assert not launch.is_in_place
    assert [run.count for run in launch.runs] == [7, 7]


def test_scattered_free_rows_are_filled_one_by_one_where_that_costs_less() -> None:
    memory = Memory(OWN, list(range(0, ROWS, 2)))
    works = [memory.work(1, 1), memory.work(1, 1)]
    costs = StageCosts(OWN, {Stage(1, ROWS): 0.5, Stage(16, ROWS): 3.0, Stage(32, ROWS): 4.0})
    launches = list(Step(OWN, costs, memory.allocator, works).launches())
    check(launches, works, memory)
    assert [launch.stage.tokens for launch in launches] == [1, 1]
    assert all(launch.is_in_place for launch in launches)


def test_many_tokens_into_scattered_rows_are_not_launched_one_by_one() -> None:
    """Each launch of one token looked cheap, as if those behind it found a long run of free rows."""
    memory = Memory(OWN, [row for row in range(ROWS) if row % 4 == 0])
    work = memory.work(60, 1)
    launches = memory.launches([work])
    check(launches, [work], memory)
    assert len(launches) == 2


def test_the_last_free_rows_take_as_many_tokens_as_there_are() -> None:
    memory = Memory(OWN, list(range(ROWS - 5)))
    work = memory.work(5, 5)
    launches = memory.launches([work])
    check(launches, [work], memory)
    assert [(launch.stage.tokens, launch.is_in_place) for launch in launches] == [(16, False)]


def test_what_a_launch_was_to_fill_is_free_again_when_it_is_given_up() -> None:
    memory = Memory(OWN, [0, 1])
    step = Step(OWN, StageCosts(OWN), memory.allocator, [memory.work(5, 1)])
    next(step.launches())
    assert [(run.start, run.count) for run in step.written] == [(2, 16), (32, 16)], (
        "with the padding, and what the net overwrites behind its 32 rows"
    )
    assert memory.allocator.use.used == 7


def test_positions_of_the_history_are_those_of_the_rows_owners() -> None:
    memory = Memory(replace(OWN, has_history_positions=True), [0, 1, 2, 5])
    (launch,) = memory.launches([memory.work(1, 1, held=4)])
    assert launch.history_positions.tolist() == [0, 1, 2, 0, 0, 3, *[0] * 26]
    assert launch.positions.tolist() == [4]
