"""Kept sequences save work, and never more memory or sequences are taken than allowed."""

from __future__ import annotations

import numpy as np
import pytest

from baichuan2_tpu.engine.base import Chunk, RowUse
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.server.scheduling.prefix_index import Prompt
from baichuan2_tpu.server.scheduling.prefix_pool import PrefixPool
from doubles.fakes import HistoryEngine


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
    assert pool.reserve(growing, 64)
    assert pool.idle_sequences == 1
    assert pool.reserve(growing, 129)
    assert (pool.idle_sequences, engine.open_sequences) == (0, 2)
    assert not pool.reserve(other, 65)
    assert pool.held_tokens == 256


def test_a_sequence_counts_with_the_most_it_ever_held() -> None:
    pool, _ = new_pool()
    use(pool, [1] * 130)
    taken(pool, [1] * 66)
    assert pool.held_tokens == 192


class RowEngine(HistoryEngine):
    """An engine whose sequences share rows, one per token."""

    @property
    def row_use(self) -> RowUse:
        return RowUse(total=64, used=0, shared=0)


def test_where_sequences_share_rows_they_count_as_what_they_hold() -> None:
    """In blocks of 64, a second short conversation found 64 rows taken by the first one's three."""
    engine = RowEngine(300, max_context=64, max_sequences=8)
    pool = PrefixPool(engine, 64)
    for first in range(8):
        taken(pool, [first, *range(100, 107)])
    assert pool.held_tokens == 64


def test_a_truncated_sequence_frees_its_rows() -> None:
    pool = PrefixPool(RowEngine(300, max_context=64, max_sequences=2), 64)
    kept = use(pool, [1, 2, 3, 4, *range(50)])
    assert pool.held_tokens == 54
    assert taken(pool, [1, 2, 3, 4, *range(50, 80)]) is kept
    assert pool.held_tokens == 34


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
