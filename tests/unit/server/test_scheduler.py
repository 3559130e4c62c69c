"""Many requests share an engine as if each had it alone, and none is lost whatever happens to the others."""

from __future__ import annotations

import threading
from collections.abc import Sequence as Items
from time import sleep

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.errors import (
    BackendError,
    ContextLengthError,
    DeadlineError,
    QueueFull,
    RequestError,
    ShutdownError,
)
from baichuan2_tpu.generate.events import Result, TextPiece, TokenChosen
from baichuan2_tpu.server.scheduling import scheduler as scheduler_module
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.scheduling.ticket import Progress
from doubles.fakes import ByteTokenizer, FakeEngine, FakeSequence, HistoryEngine, ScriptedEngine
from schedules.serving import Clock, finish, read, request, result_of, solo, submit

TOKENIZER = ByteTokenizer()
VOCABULARY = TOKENIZER.vocabulary_size
Logits = NDArray[np.float32]
TOKEN_BYTES = 4  # of keys and values, with the one head of one number that a fake engine has


def new_engine(*, max_context: int = 256, max_sequences: int = 8) -> HistoryEngine:
    return HistoryEngine(VOCABULARY, max_context=max_context, max_sequences=max_sequences)


def new_scheduler(engine: FakeEngine, clock: Clock | None = None, **settings: object) -> Scheduler:
    chosen = SchedulerSettings(**settings)  # pyright: ignore[reportArgumentType] - the caller names real fields
    return Scheduler(engine, TOKENIZER, chosen, clock_s=clock or Clock())


def test_a_request_is_answered_with_the_events_of_generate() -> None:
    engine = ScriptedEngine(VOCABULARY)
    engine.enqueue_ids([*b"yes", TOKENIZER.END_ID])
    scheduler = new_scheduler(engine)
    ticket = submit(scheduler, request(b"hi"))
    finish(scheduler)
    *events, result = read(ticket)
    assert [event.text for event in events if isinstance(event, TextPiece)] == ["y", "e", "s"]
    assert [event.token_id for event in events if isinstance(event, TokenChosen)] == list(b"yes")
    assert isinstance(result, Result)
    assert (result.text, result.finish_reason, result.stats.prompt_tokens) == ("yes", "stop", 2)
    assert engine.fed == [list(b"hi"), [ord("y")], [ord("e")], [ord("s")]]


def test_requests_that_come_later_join_between_tokens() -> None:
    engine = new_engine()
    scheduler = new_scheduler(engine)
    first = request(b"first", 12)
    second = request(b"the second", 3)
    tickets = [submit(scheduler, first)]
    scheduler.step()
    tickets.append(submit(scheduler, second))
    while not tickets[1].is_over:
        scheduler.step()
    assert not tickets[0].is_over
    finish(scheduler)
    for ticket, single in zip(tickets, (first, second), strict=True):
        assert result_of(ticket).token_ids == solo(new_engine(), TOKENIZER, single).token_ids


def test_a_long_prompt_is_fed_in_pieces_as_long_as_the_allowed_pause() -> None:
    clock = Clock()

    class SlowEngine(HistoryEngine):
        def forward(self, chunks: Items[Chunk]) -> list[Logits]:
            clock.now_s += sum(len(chunk.tokens) for chunk in chunks) / 64
            return super().forward(chunks)

    engine = SlowEngine(VOCABULARY, max_context=256)
    scheduler = new_scheduler(engine, clock, max_pause_s=0.5)
    submit(scheduler, request(b"short", 30))
    scheduler.step()
    scheduler.step()
    engine.fed.clear()
    submit(scheduler, request(bytes(70), 2))
    for _ in range(4):
        scheduler.step()
    assert [len(ids) for ids in engine.fed] == [1, 32, 1, 32, 1, 6, 1, 1]


def test_a_prompt_alone_is_fed_in_the_engines_own_pieces() -> None:
    engine = new_engine()
    engine.prompt_piece = 64
    scheduler = new_scheduler(engine)
    submit(scheduler, request(bytes(150), 1))
    finish(scheduler)
    assert [len(ids) for ids in engine.fed] == [64, 64, 22]


def test_no_more_than_the_allowed_run_at_once() -> None:
    scheduler = new_scheduler(new_engine(), max_running=2)
    tickets = [submit(scheduler, request([token_id], 3)) for token_id in range(5)]
    scheduler.step()
    load = scheduler.load()
    assert (load.running, load.waiting) == (2, 3)
    finish(scheduler)
    assert all(result_of(ticket).finish_reason == "length" for ticket in tickets)


def test_an_engine_of_one_sequence_serves_one_request_after_the_other() -> None:
    scheduler = new_scheduler(new_engine(max_sequences=1))
    requests = [request([token_id, 2], 4) for token_id in range(4)]
    tickets = [submit(scheduler, single) for single in requests]
    scheduler.step()
    assert scheduler.load().running == 1
    finish(scheduler)
    for ticket, single in zip(tickets, requests, strict=True):
        assert result_of(ticket).token_ids == solo(new_engine(), TOKENIZER, single).token_ids


def test_clients_take_turns_however_many_requests_each_has() -> None:
    scheduler = new_scheduler(new_engine(), max_running=1)
    many = [submit(scheduler, request([token_id], 1, client="many")) for token_id in range(4)]
    scheduler.step()
    other = submit(scheduler, request([9], 1, client="one"))
    scheduler.step()
    assert other.is_over
    assert [ticket.is_over for ticket in many] == [True, False, False, False]


def test_a_full_queue_refuses_and_says_when_to_try_again() -> None:
    clock = Clock()
    scheduler = new_scheduler(new_engine(), clock, max_running=1, max_waiting=1)
    submit(scheduler, request(b"a", 1))
    clock.now_s = 30
    finish(scheduler)
    kept = [submit(scheduler, request([token_id], 1)) for token_id in range(2)]
    with pytest.raises(QueueFull, match="2 requests are running or waiting; at most 2") as caught:
        submit(scheduler, request(b"b"))
    assert caught.value.retry_after_s == 15
    assert scheduler.load().totals.refused == 1
    finish(scheduler)
    assert all(ticket.is_over for ticket in kept)


def test_answers_that_are_asked_for_together_are_taken_together_or_not_at_all() -> None:
    # The first ones ran until the last was refused, and others were refused meanwhile.
    scheduler = new_scheduler(new_engine(), max_running=1, max_waiting=2)
    submit(scheduler, request(b"a", 1))
    with pytest.raises(QueueFull, match="1 requests are running or waiting; at most 3 are allowed"):
        scheduler.submit([request(b"b", 1)] * 3)
    assert (scheduler.load().waiting, scheduler.load().totals.refused) == (1, 3)
    assert len(scheduler.submit([request(b"b", 1)] * 2)) == 2
    finish(scheduler)
    assert scheduler.load().totals.finished == 3


def test_more_answers_than_the_queue_ever_holds_are_no_case_for_trying_again() -> None:
    scheduler = new_scheduler(new_engine(), max_running=1, max_waiting=2)
    with pytest.raises(RequestError, match="asks for 4 answers at once; at most 3 are allowed"):
        scheduler.submit([request(b"a", 1)] * 4)
    assert scheduler.load().totals.refused == 0


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ([], RequestError, "the prompt is empty"),
        ([1, VOCABULARY], RequestError, f"token id {VOCABULARY} is not in the vocabulary; 0 to"),
        ([-1], RequestError, "token id -1 is not in the vocabulary"),
        ([1] * 257, ContextLengthError, "257 tokens do not fit"),
    ],
)
def test_what_the_engine_cannot_do_is_refused_before_it_waits(
    prompt: list[int], error: type[Exception], message: str
) -> None:
    scheduler = new_scheduler(new_engine())
    with pytest.raises(error, match=message):
        submit(scheduler, request(prompt))
    assert scheduler.load().waiting == 0


def test_a_cancelled_answer_gets_no_more_tokens() -> None:
    engine = new_engine()
    scheduler = new_scheduler(engine)
    ticket = submit(scheduler, request(b"hi", 50))
    scheduler.step()
    scheduler.step()
    engine.fed.clear()
    ticket.cancel()
    scheduler.step()
    result = result_of(ticket)
    assert (len(result.token_ids), result.finish_reason) == (2, "cancelled")
    assert engine.fed == []
    assert scheduler.load().totals.cancelled == 1


def test_an_answer_cancelled_during_a_step_does_not_get_its_token() -> None:
    class CancellingEngine(HistoryEngine):
        def forward(self, chunks: Items[Chunk]) -> list[Logits]:
            ticket.cancel()
            return super().forward(chunks)

    alone = new_scheduler(new_engine())
    expected = submit(alone, request(b"other", 3))
    finish(alone)
    scheduler = new_scheduler(CancellingEngine(VOCABULARY))
    ticket, other = submit(scheduler, request(b"hi")), submit(scheduler, request(b"other", 3))
    finish(scheduler)
    assert result_of(ticket).token_ids == ()
    # The cancelled answer had made the step fail for all others in it.
    assert result_of(other).token_ids == result_of(expected).token_ids
    assert scheduler.load().totals.faults == 0


def test_the_load_counts_every_request_once_at_any_moment_of_a_step() -> None:
    class WatchingEngine(HistoryEngine):
        def forward(self, chunks: Items[Chunk]) -> list[Logits]:
            load = scheduler.load()
            counts.append((load.running + load.waiting, load.totals.cancelled))
            return super().forward(chunks)

    counts: list[tuple[int, int]] = []
    scheduler = new_scheduler(WatchingEngine(VOCABULARY), max_running=2)
    tickets = [submit(scheduler, request([token_id], 2)) for token_id in range(3)]
    scheduler.step()
    tickets[0].cancel()
    finish(scheduler)
    assert counts == [(3, 0), (2, 1), (1, 1)]
    load = scheduler.load()
    assert (load.running, load.waiting, load.totals.finished) == (0, 0, 2)


def test_a_request_cancelled_in_the_queue_is_never_fed() -> None:
    engine = new_engine()
    scheduler = new_scheduler(engine, max_running=1)
    submit(scheduler, request(b"a", 3))
    waiting = submit(scheduler, request(b"b", 3))
    scheduler.step()
    waiting.cancel()
    scheduler.step()
    assert result_of(waiting).finish_reason == "cancelled"
    finish(scheduler)
    assert list(b"b") not in engine.fed


@pytest.mark.parametrize("max_running", [1, 2])
def test_a_late_answer_ends_with_an_error_running_or_waiting(max_running: int) -> None:
    clock = Clock()
    scheduler = new_scheduler(new_engine(), clock, max_running=max_running)
    other = submit(scheduler, request(b"a", 5))
    late = submit(scheduler, request(b"b", 5, timeout_s=2))
    scheduler.step()
    clock.now_s = 2
    finish(scheduler)
    with pytest.raises(DeadlineError, match="not complete after 2 s"):
        read(late)
    assert result_of(other).finish_reason == "length"
    assert scheduler.load().totals.failed == 1


def test_a_fault_of_the_engine_ends_what_runs_and_the_others_go_on() -> None:
    engine = new_engine()
    scheduler = new_scheduler(engine, max_running=2)
    requests = [request([token_id], 6) for token_id in range(4)]
    tickets = [submit(scheduler, single) for single in requests]
    scheduler.step()
    engine.fail_after = 0
    scheduler.step()
    assert scheduler.load().is_faulty
    engine.fail_after = None
    finish(scheduler)
    for ticket in tickets[:2]:
        with pytest.raises(BackendError, match="told to fail"):
            read(ticket)
    for ticket, single in zip(tickets[2:], requests[2:], strict=True):
        assert result_of(ticket).token_ids == solo(new_engine(), TOKENIZER, single).token_ids
    load = scheduler.load()
    assert (load.is_faulty, load.totals.faults, load.totals.failed, load.totals.finished) == (False, 1, 2, 2)
    assert engine.open_sequences == load.idle_sequences


def test_a_fault_of_another_kind_is_told_as_one_of_the_engine() -> None:
    class BrokenEngine(HistoryEngine):
        def forward(self, chunks: Items[Chunk]) -> list[Logits]:
            raise ZeroDivisionError("a bug")

    scheduler = new_scheduler(BrokenEngine(VOCABULARY))
    ticket = submit(scheduler, request(b"hi"))
    finish(scheduler)
    with pytest.raises(BackendError, match="ZeroDivisionError: a bug"):
        read(ticket)


def test_logits_that_are_no_numbers_end_only_their_own_request() -> None:
    class NanEngine(HistoryEngine):
        def logits(self, ids: Items[int]) -> Logits:
            return np.full(VOCABULARY, np.nan, np.float32) if ids[0] == 7 else super().logits(ids)

    engine = NanEngine(VOCABULARY)
    scheduler = new_scheduler(engine)
    bad = submit(scheduler, request([7, 1]))
    good = request([1, 7])
    ticket = submit(scheduler, good)
    finish(scheduler)
    with pytest.raises(BackendError, match="nan"):
        read(bad)
    assert result_of(ticket).token_ids == solo(new_engine(), TOKENIZER, good).token_ids
    assert engine.open_sequences == scheduler.load().idle_sequences == 1


def test_a_sequence_that_cannot_be_opened_fails_its_request_alone() -> None:
    class FullEngine(HistoryEngine):
        def open_sequence(self) -> FakeSequence:
            if self.open_sequences == 1:
                raise BackendError("the device has no more memory")
            return super().open_sequence()

    scheduler = new_scheduler(FullEngine(VOCABULARY))
    running = submit(scheduler, request(b"a", 4))
    ticket = submit(scheduler, request(b"b"))
    finish(scheduler)
    with pytest.raises(BackendError, match="no more memory"):
        read(ticket)
    assert result_of(running).finish_reason == "length"


def test_a_prompt_goes_on_from_an_earlier_conversation() -> None:
    engine = new_engine()
    scheduler = new_scheduler(engine)
    first = submit(scheduler, request(b"a system prompt. hello", 4))
    finish(scheduler)
    answer = result_of(first).token_ids
    engine.fed.clear()
    prompt = [*b"a system prompt. hello", *answer, *b" and"]
    second = submit(scheduler, request(prompt, 1))
    finish(scheduler)
    assert result_of(second).stats.reused_tokens == len(prompt) - 5
    assert engine.fed == [[answer[-1], *b" and"]]
    totals = scheduler.load().totals
    assert (totals.reused_tokens, totals.prompt_tokens) == (len(prompt) - 5, len(prompt) + 22)


def test_a_prompt_asked_for_many_times_at_once_is_computed_once() -> None:
    engine = new_engine()
    engine.prompt_piece = 32
    scheduler = new_scheduler(engine)
    single = request(range(100), 3)
    tickets = [submit(scheduler, single) for _ in range(4)]
    finish(scheduler)
    results = [result_of(ticket) for ticket in tickets]
    assert {result.token_ids for result in results} == {solo(new_engine(), TOKENIZER, single).token_ids}
    assert sorted(result.stats.reused_tokens for result in results) == [
        0,
        96,
        96,
        96,
    ]  # the last few tokens are not waited for


def test_a_prompt_does_not_wait_for_one_like_it_that_was_cancelled() -> None:
    scheduler = new_scheduler(new_engine())
    first, second = (submit(scheduler, request(range(100), 3)) for _ in range(2))
    first.cancel()
    finish(scheduler)
    assert result_of(second).finish_reason == "length"


def test_answers_preempted_for_lack_of_memory_resume_to_the_same_tokens() -> None:
    engine = new_engine()
    scheduler = new_scheduler(engine, kv_bytes=300 * TOKEN_BYTES)
    requests = [request([token_id] * 60, 100) for token_id in range(3)]
    tickets = [submit(scheduler, single) for single in requests]
    most = 0
    while scheduler.step():
        held = scheduler.load()
        most = max(most, held.held_tokens)
        assert held.held_tokens <= held.max_held_tokens == 300
    assert most == 256  # in blocks of 64
    assert scheduler.load().totals.preempted > 0
    for ticket, single in zip(tickets, requests, strict=True):
        result = result_of(ticket)
        assert result.token_ids == solo(new_engine(), TOKENIZER, single).token_ids
        assert result.stats.reused_tokens == 0, "its own tokens, fed again, are not another's"


def test_a_ticket_tells_how_much_of_its_prompt_is_read() -> None:
    engine = new_engine()
    engine.prompt_piece = 32
    scheduler = new_scheduler(engine, max_running=1)
    first, second = (submit(scheduler, request([token_id] * 70, 3)) for token_id in range(2))
    reads: list[Progress | None] = []
    for _ in range(4):
        scheduler.step()
        reads.append(first.progress)
    assert reads == [Progress(32, 70), Progress(64, 70), Progress(70, 70), Progress(70, 70)]
    assert second.progress is None
    assert scheduler.load().reading == 0
    scheduler.step()
    scheduler.step()
    assert (second.progress, scheduler.load().reading) == (Progress(32, 70), 1)
    finish(scheduler)
    assert scheduler.load().totals.computed_tokens == 140


def test_an_answer_that_is_preempted_waits_and_is_read_again() -> None:
    scheduler = new_scheduler(new_engine(), kv_bytes=300 * TOKEN_BYTES)
    tickets = [submit(scheduler, request([token_id] * 60, 100)) for token_id in range(3)]
    while not scheduler.load().totals.preempted:
        scheduler.step()
    assert [ticket.progress is None for ticket in tickets] == [False, False, True]
    while tickets[2].progress is None:
        scheduler.step()
    assert tickets[2].progress.prompt_tokens > 60
    finish(scheduler)
    assert scheduler.load().totals.computed_tokens > 3 * 60


def test_an_engine_that_works_again_is_found_without_a_request(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A server that is not ready gets no requests, and so it never was again.
    monkeypatch.setattr(scheduler_module, "_PROBE_S", 0.01)
    engine = new_engine()
    engine.fail_after = 0
    with new_scheduler(engine) as scheduler:
        with pytest.raises(BackendError):
            list(submit(scheduler, request(b"hi")))
        while "the engine still fails: the engine was told to fail" not in caplog.text:
            sleep(0.01)
        assert scheduler.load().is_faulty
        engine.fail_after = None
        while scheduler.load().is_faulty:
            sleep(0.01)
        assert list(submit(scheduler, request(b"hi", 1)))
    assert engine.open_sequences == 0


def test_a_sequence_that_cannot_be_filled_ends_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    # It stayed open for ever, and an error of no known kind left its request in the queue to fail again.
    engine = new_engine(max_sequences=2)
    scheduler = new_scheduler(engine)
    submit(scheduler, request(b"a system prompt. A question of more words than those before it", 4))
    finish(scheduler)

    def fail(*_: object) -> None:
        raise RuntimeError("no copy")

    with monkeypatch.context() as broken:
        broken.setattr(FakeSequence, "copy_prefix", fail)
        ticket = submit(scheduler, request(b"a system prompt. Another", 1))
        finish(scheduler)
    with pytest.raises(BackendError, match="RuntimeError: no copy"):
        list(ticket)
    assert engine.open_sequences == 1
    both = [submit(scheduler, request(bytes([token_id] * 9), 2)) for token_id in range(2)]
    finish(scheduler)
    assert [result_of(ticket).finish_reason for ticket in both] == ["length", "length"]


def test_a_prompt_that_was_never_read_does_not_count() -> None:
    scheduler = new_scheduler(new_engine(), max_running=1)
    submit(scheduler, request(b"abc", 2))
    submit(scheduler, request(b"never read")).cancel()
    finish(scheduler)
    totals = scheduler.load().totals
    assert (totals.finished, totals.cancelled, totals.prompt_tokens) == (1, 1, 3)


def test_memory_for_less_than_one_context_is_refused() -> None:
    with pytest.raises(RequestError, match="a context of 256 tokens takes 1024"):
        new_scheduler(new_engine(), kv_bytes=1023)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(RequestError, match="max_running is 0; 1 or more is allowed"):
        SchedulerSettings(max_running=0)


def test_closing_with_grace_finishes_what_was_taken() -> None:
    engine = new_engine()
    scheduler = new_scheduler(engine, max_running=1)
    tickets = [submit(scheduler, request([token_id], 3)) for token_id in range(3)]
    scheduler.close(grace_s=10)
    assert all(result_of(ticket).finish_reason == "length" for ticket in tickets)
    assert engine.open_sequences == 0
    with pytest.raises(ShutdownError):
        submit(scheduler, request(b"late"))


def test_closing_without_grace_fails_what_is_left() -> None:
    engine = new_engine()
    scheduler = new_scheduler(engine, max_running=1)
    tickets = [submit(scheduler, request([token_id], 3)) for token_id in range(2)]
    scheduler.step()
    scheduler.close()
    scheduler.close()
    for ticket in tickets:
        with pytest.raises(ShutdownError):
            read(ticket)
    assert engine.open_sequences == 0


def test_a_thread_serves_what_other_threads_ask() -> None:
    engine = new_engine()
    requests = [request([token_id, 3], 5) for token_id in range(12)]
    results: dict[int, Result] = {}

    def ask(scheduler: Scheduler, place: int) -> None:
        *_, result = submit(scheduler, requests[place])
        assert isinstance(result, Result)
        results[place] = result

    with Scheduler(engine, TOKENIZER) as scheduler:
        threads = [threading.Thread(target=ask, args=(scheduler, place)) for place in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert engine.open_sequences == 0
    for place, single in enumerate(requests):
        assert results[place].token_ids == solo(new_engine(), TOKENIZER, single).token_ids
