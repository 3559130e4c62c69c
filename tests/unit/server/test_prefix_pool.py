"""Kept sequences save work, and never more memory or sequences are taken than allowed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.server.scheduling.prefix_index import Prompt
from baichuan2_tpu.server.scheduling.prefix_pool import PrefixPool
from doubles.fakes import HistoryEngine, RowEngine


def new_pool(max_tokens: int = 1024, *, max_sequences: int = 4) -> tuple[PrefixPool, HistoryEngine]:
    engine = HistoryEngine(300, max_context=256, max_sequences=max_sequences)
    return PrefixPool(engine, max_tokens), engine


def use(pool: PrefixPool, ids: list[int], tenant: str = "") -> TrackedSequence:
    """Take a sequence, feed it and give it back."""
    sequence = taken(pool, ids, tenant)
    sequence.feed(ids[sequence.length :])
    pool.give_back(sequence)
    return sequence


def alone(engine: HistoryEngine, ids: list[int]) -> Chunk:
    """Return a chunk of a sequence that holds nothing else."""
    return Chunk(engine.open_sequence(), ids)


def taken(pool: PrefixPool, ids: list[int], tenant: str = "") -> TrackedSequence:
    pool.refresh()
    sequence = pool.take(Prompt.of(ids, tenant))
    assert sequence is not None
    return sequence


def test_the_longest_beginning_is_taken() -> None:
    pool, _ = new_pool()
    use(pool, [1, 2])
    longer = use(pool, [1, 3, 4, 5])
    assert taken(pool, [1, 3, 4, 6]) is longer
    assert longer.ids == (1, 3, 4)


def test_the_last_id_is_always_fed_again() -> None:
    pool, _ = new_pool()
    kept = use(pool, [1, 2, 3])
    assert taken(pool, [1, 2, 3]) is kept
    assert kept.ids == (1, 2)


def test_a_conversation_is_not_given_up_for_a_few_tokens_while_there_is_place() -> None:
    pool, engine = new_pool()
    kept = use(pool, [1, *range(100)])
    assert taken(pool, [1, 200, 201]) is not kept
    assert engine.open_sequences == 2


def test_another_sequence_gets_a_copy_of_the_longest_beginning_even_of_one_in_use() -> None:
    pool, engine = new_pool()
    use(pool, [1, *range(100)])
    in_use = taken(pool, [1, *range(200)])
    in_use.feed(list(range(100, 200)))
    copy = taken(pool, [1, *range(150), 250])
    assert copy.ids == (1, *range(150))
    assert engine.open_sequences == 2
    assert np.array_equal(copy.feed([250]), engine.forward([alone(engine, [1, *range(150), 250])])[0])


def test_an_engine_that_cannot_copy_computes_the_beginning_again() -> None:
    pool, engine = new_pool()
    engine.can_copy = False
    taken(pool, [1, 2, 3]).feed([1, 2, 3])
    assert taken(pool, [1, 2, 3]).ids == ()


def test_without_place_the_best_beginning_is_taken_whatever_it_loses() -> None:
    pool, _ = new_pool(max_sequences=2)
    use(pool, list(range(100)))
    kept = use(pool, [1, *range(100)])
    assert taken(pool, [1, 0, 200]) is kept
    assert kept.ids == (1, 0)


def test_without_place_or_beginning_the_least_recently_used_makes_room() -> None:
    pool, engine = new_pool(max_sequences=2)
    use(pool, [1, 2])
    recent = use(pool, [3, 4])
    taken(pool, [5, 6])
    assert (engine.open_sequences, pool.idle_sequences) == (2, 1)
    assert taken(pool, [3, 4]) is recent


def test_nothing_is_taken_while_all_sequences_are_in_use() -> None:
    pool, _ = new_pool(max_sequences=1)
    sequence = taken(pool, [1])
    assert pool.take(Prompt.of([2])) is None
    pool.give_back(sequence)
    assert pool.take(Prompt.of([2])) is not None


def test_nothing_is_taken_while_others_in_use_have_the_memory() -> None:
    pool, _ = new_pool(256)
    sequence = taken(pool, [1] * 200)
    assert pool.take(Prompt.of([2])) is None
    assert pool.held_tokens == 256
    pool.give_back(sequence)
    assert pool.take(Prompt.of([2])) is not None
    assert pool.held_tokens == 64


def test_growing_closes_idle_sequences_and_then_fails() -> None:
    pool, engine = new_pool(256)
    use(pool, [1, 2])
    other, growing = taken(pool, [3]), taken(pool, [4])
    assert pool.reserve({growing: 64})
    assert pool.idle_sequences == 1
    assert pool.reserve({growing: 129})
    assert (pool.idle_sequences, engine.open_sequences) == (0, 2)
    assert not pool.reserve({other: 65})
    assert pool.held_tokens == 256


def test_a_sequence_counts_with_the_most_it_ever_held() -> None:
    pool, _ = new_pool()
    use(pool, [1] * 130)
    taken(pool, [1] * 66)
    assert pool.held_tokens == 192


def new_row_pool(rows: int = 64, *, max_sequences: int = 8) -> tuple[PrefixPool, RowEngine]:
    engine = RowEngine(300, rows, max_context=64, max_sequences=max_sequences)
    return PrefixPool(engine, rows), engine


def test_where_sequences_share_rows_they_count_as_what_they_hold() -> None:
    """In blocks of 64, a second short conversation found 64 rows taken by the first one's three."""
    pool, _ = new_row_pool()
    for first in range(8):
        taken(pool, [first, *range(100, 107)])
    assert pool.held_tokens == 64


def test_a_truncated_sequence_frees_its_rows() -> None:
    pool, _ = new_row_pool(max_sequences=2)
    kept = use(pool, [1, 2, 3, 4, *range(50)])
    assert pool.held_tokens == 54
    assert taken(pool, [1, 2, 3, 4, *range(50, 80)]) is kept
    assert pool.held_tokens == 34


def test_a_shared_beginning_counts_once() -> None:
    """Eight answers on a beginning of 48 tokens were counted as 8 x 50: one was admitted at a time."""
    pool, engine = new_row_pool()
    beginning = list(range(48))
    for last in range(100, 108):
        sequence = taken(pool, [*beginning, last])
        sequence.feed([*beginning, last][sequence.length :])
        assert pool.reserve({sequence: 50})
    assert pool.held_tokens == 48 + 8 * 2
    assert (engine.row_use.used, engine.row_use.shared) == (48 + 8, 48)
    assert pool.take(Prompt.of([*beginning, 108])) is None, "its last token has no row"


def test_the_rows_of_a_shared_beginning_stay_until_its_last_owner_is_gone() -> None:
    pool, _ = new_row_pool()
    beginning = list(range(40))
    first = taken(pool, [*beginning, 100])
    first.feed([*beginning, 100])
    second = taken(pool, [*beginning, 101])
    second.feed([101])
    pool.give_back(first)
    assert pool.take(Prompt.of([1, *range(200, 223)])) is None, "closing the idle one frees one row, not 41"
    assert pool.idle_sequences == 1
    taken(pool, [1, *range(200, 222)])
    assert (pool.idle_sequences, pool.held_tokens) == (0, 64)


def test_what_an_idle_sequence_had_reserved_is_free() -> None:
    pool, _ = new_row_pool()
    sequence = taken(pool, list(range(60)))
    sequence.feed(list(range(10)))
    assert pool.held_tokens == 60
    pool.give_back(sequence)
    assert pool.held_tokens == 10


class RowSchedules(RuleBasedStateMachine):
    """Take, feed, grow, give back and discard in any order: what is reserved can always be fed."""

    ROWS = 40

    def __init__(self) -> None:
        super().__init__()
        self.engine = RowEngine(300, self.ROWS, max_context=30, max_sequences=5)
        self.pool = PrefixPool(self.engine, self.ROWS)
        self.running: dict[TrackedSequence, list[int]] = {}

    @rule(
        shared=st.integers(0, 20),
        own=st.integers(1, 10),
        which=st.integers(0, 2),
        tenant=st.sampled_from("ab"),
    )
    def take(self, shared: int, own: int, which: int, tenant: str) -> None:
        ids = [*range(shared), *range(100 + 20 * which, 100 + 20 * which + own)]
        self.pool.refresh()
        sequence = self.pool.take(Prompt.of(ids, tenant))
        if sequence is not None:
            assert sequence not in self.running
            assert sequence.ids == tuple(ids[: sequence.length])
            self.running[sequence] = ids
        else:
            assert self.running, "one alone always fits"

    @rule(data=st.data())
    def feed(self, data: st.DataObject) -> None:
        """Feed some of what is reserved, which never lacks a row; an answer gets its next token."""
        for sequence, ids in self.running.items():
            count = data.draw(st.integers(0, len(ids) - sequence.length))
            if count:
                sequence.feed(ids[sequence.length : sequence.length + count])

    @rule(last=st.integers(200, 202))
    def grow(self, last: int) -> None:
        grown = {sequence: [*ids, last][:30] for sequence, ids in self.running.items()}
        while not self.pool.reserve({sequence: len(ids) for sequence, ids in grown.items()}):
            youngest = next(reversed(grown))
            assert len(grown) > 1, "one alone always fits"
            del grown[youngest], self.running[youngest]
            self.pool.give_back(youngest)
        self.running = grown

    @rule(which=st.integers(0, 4), is_kept=st.booleans())
    def stop(self, which: int, is_kept: bool) -> None:
        if self.running:
            sequence = list(self.running)[which % len(self.running)]
            del self.running[sequence]
            (self.pool.give_back if is_kept else self.pool.discard)(sequence)

    @invariant()
    def rows_in_use_and_to_come_are_no_more_than_there_are(self) -> None:
        to_come = sum(len(ids) - sequence.length for sequence, ids in self.running.items())
        assert self.pool.held_tokens == self.engine.row_use.used + to_come <= self.ROWS


TestRowSchedules = RowSchedules.TestCase


def test_clearing_closes_what_is_idle_only() -> None:
    pool, engine = new_pool()
    use(pool, [1, 2])
    in_use = taken(pool, [3, 4])
    pool.clear()
    assert (engine.open_sequences, pool.idle_sequences) == (1, 0)
    assert in_use.ids == ()


@pytest.mark.parametrize("length", [1, 64, 65, 256])
def test_memory_is_given_in_blocks_up_to_the_context(length: int) -> None:
    pool, _ = new_pool()
    taken(pool, [1] * length)
    assert pool.held_tokens == min(-(-length // 64) * 64, 256)


def test_another_tenants_sequences_are_neither_continued_nor_copied() -> None:
    # The counts and times of an answer told one key's holder what another had asked, token by token.
    pool, engine = new_pool()
    prompt = [1, *range(100)]
    idle = use(pool, prompt, "a")
    taken(pool, prompt, "a").feed([99])
    assert taken(pool, prompt, "b").ids == ()
    assert taken(pool, prompt, "a").ids == idle.ids[:-1] == tuple(prompt[:-1])
    assert engine.open_sequences == 3


def test_another_tenants_idle_sequence_makes_room() -> None:
    pool, engine = new_pool(max_sequences=1)
    use(pool, [1, 2, 3], "a")
    assert taken(pool, [1, 2, 3], "b").ids == ()
    assert engine.open_sequences == 1
