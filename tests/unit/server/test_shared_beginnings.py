"""Long beginnings that many prompts share are found and copied with little work, whoever else is served."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.generate.block_hashes import BLOCK_TOKENS, BlockHashes
from baichuan2_tpu.generate.tracked_sequence import common_prefix
from baichuan2_tpu.server.scheduling import step as step_module
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from baichuan2_tpu.server.scheduling.prefix_index import PrefixIndex
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from doubles.fakes import ByteTokenizer, FakeEngine, HistoryEngine, one_hot
from schedules.serving import Clock, finish, request, result_of, solo, submit

TOKENIZER = ByteTokenizer()
HELD = 7000
"""Tokens of the beginning that all prompts share."""
PROMPTS = 60


class CountedId(int):
    """A token id that counts how often any is compared or hashed."""

    work: ClassVar[int] = 0

    def __eq__(self, other: object) -> bool:
        CountedId.work += 1
        return int(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        CountedId.work += 1
        return int(self)


class ConstantEngine(FakeEngine):
    """Always chooses the same token."""

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        return one_hot(7, self.config.vocabulary_size)


def counted(ids: Iterable[int]) -> list[CountedId]:
    """Return ids that are nobody else's objects, as those of another request are not."""
    return [CountedId(token_id) for token_id in ids]


def new_scheduler(engine: FakeEngine, max_running: int = 64) -> Scheduler:
    return Scheduler(engine, TOKENIZER, SchedulerSettings(max_running=max_running), clock_s=Clock())


def test_admitting_many_prompts_on_a_long_held_beginning_compares_each_token_a_few_times() -> None:
    # Every admission compared the prompt with every sequence, token by token: 60 x 60 x 7,000 comparisons,
    # during which other answers stood still for 2 s.
    engine = ConstantEngine(TOKENIZER.vocabulary_size, max_context=8192, max_sequences=80)
    scheduler = new_scheduler(engine)
    beginning = [index % 250 for index in range(HELD)]
    submit(scheduler, request(counted(beginning), 2))
    finish(scheduler)
    CountedId.work = 0
    tickets = [submit(scheduler, request(counted([*beginning, index, 1]), 2)) for index in range(PROMPTS)]
    finish(scheduler)
    assert CountedId.work <= 6 * PROMPTS * HELD
    assert {result_of(ticket).stats.reused_tokens for ticket in tickets} <= {HELD, HELD + 1}


def test_a_step_stops_admitting_once_it_has_copied_much(monkeypatch: pytest.MonkeyPatch) -> None:
    # One step copied the keys and values of all new prompts, and running answers waited for all of it.
    monkeypatch.setattr(step_module, "_COPIED_TOKENS", 100)
    engine = HistoryEngine(TOKENIZER.vocabulary_size, max_context=256, max_sequences=16)
    scheduler = new_scheduler(engine)
    requests = [request([*range(64), token_id, 1], 20) for token_id in range(8)]
    first = submit(scheduler, requests[0])
    scheduler.step()
    tickets = [first, *(submit(scheduler, single) for single in requests[1:])]
    running: list[int] = []
    while not first.is_over:
        scheduler.step()
        running.append(scheduler.load().running)
    assert running[:4] == [3, 5, 7, 8]  # two copies of 64 tokens reach the bound
    finish(scheduler)
    for ticket, single in zip(tickets, requests, strict=True):
        alone = solo(HistoryEngine(TOKENIZER.vocabulary_size, max_context=256), TOKENIZER, single)
        assert result_of(ticket).token_ids == alone.token_ids


def test_copies_that_share_their_memory_have_no_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    # Prompts on a held beginning waited for each other where nothing was copied for them.
    monkeypatch.setattr(step_module, "_COPIED_TOKENS", 100)
    engine = HistoryEngine(TOKENIZER.vocabulary_size, max_context=256, max_sequences=16)
    engine.copies_share = True
    scheduler = new_scheduler(engine)
    submit(scheduler, request([*range(64), 0, 1], 20))
    scheduler.step()
    for token_id in range(1, 8):
        submit(scheduler, request([*range(64), token_id, 1], 20))
    scheduler.step()
    assert scheduler.load().running == 8


def test_a_prompt_waits_for_a_longer_beginning_than_any_held() -> None:
    engine = HistoryEngine(TOKENIZER.vocabulary_size, max_context=256, max_sequences=8)
    engine.prompt_piece = 32
    scheduler = new_scheduler(engine)
    submit(scheduler, request(range(32), 1))
    finish(scheduler)
    submit(scheduler, request(range(128), 1))
    second = submit(scheduler, request([*range(128), 7], 1))
    finish(scheduler)
    assert result_of(second).stats.reused_tokens == 128


def test_prompts_of_other_tenants_are_not_waited_for() -> None:
    engine = HistoryEngine(TOKENIZER.vocabulary_size, max_context=256)
    scheduler = new_scheduler(engine)
    tickets = [submit(scheduler, request(range(100), 3, tenant=tenant)) for tenant in "ab"]
    scheduler.step()
    assert scheduler.load().running == 2
    finish(scheduler)
    assert [result_of(ticket).stats.reused_tokens for ticket in tickets] == [0, 0]


@pytest.mark.parametrize("shared", [0, 1, 15, 16, 17, 100, 128])
def test_the_index_finds_the_blocks_that_are_shared(shared: int) -> None:
    index: PrefixIndex[str] = PrefixIndex()
    index.update("other", BlockHashes().update([9] * 128))
    index.update("near", BlockHashes().update(range(128)))
    prompt = [*range(shared), *[250] * (128 - shared)]
    owners, blocks = index.nearest(BlockHashes().update(prompt), ["other", "near"])
    assert blocks == shared // BLOCK_TOKENS
    assert owners == (["near"] if blocks else ["other", "near"])
    assert index.nearest(BlockHashes().update(prompt), ["other"]) == (["other"], 0)


def test_the_index_follows_what_is_cut_and_fed_again() -> None:
    index: PrefixIndex[str] = PrefixIndex()
    hashes = BlockHashes()
    index.update("a", hashes.update(range(64)))
    hashes.truncate(40)
    index.update("a", hashes.update([*range(40), *[5] * 24]))
    assert index.nearest(BlockHashes().update(range(64)), ["a"]) == (["a"], 2)
    index.discard("a")
    assert index.nearest(BlockHashes().update(range(64)), []) == ([], 0)


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [1], 0), ([1, 2], (1, 2, 3), 2), ([1, 2, 3], [1, 4, 3], 1), ((5,), [6], 0)],
)
def test_common_beginnings_are_counted_to_the_first_difference(
    first: list[int], second: list[int], length: int
) -> None:
    assert common_prefix(first, second) == length
