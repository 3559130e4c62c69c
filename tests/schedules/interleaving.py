"""Random orders of requests, steps and cancellations, and what must hold after any of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import DeadlineError
from baichuan2_tpu.generate.events import Result, TextPiece, TokenChosen
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.generate.tracked_sequence import common_prefix
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.scheduling.ticket import Request, Ticket
from baichuan2_tpu.text.tokenizer import Tokenizer
from schedules.serving import Clock, finish, solo, submit

__all__ = ["Course", "check_course", "courses"]

_TIMEOUT_S = 12


@dataclass(frozen=True)
class Course:
    """What happens: before each request some steps are made, and then a ticket may be cancelled."""

    requests: list[Request]
    steps: list[int]
    cancellations: list[int | None]
    max_running: int
    contexts: float


def courses(context: int) -> st.SearchStrategy[Course]:
    """Draw courses whose prompts often begin alike."""
    prompts = st.lists(st.integers(97, 98), min_size=1, max_size=context // 2).map(tuple)
    sampling = st.builds(
        SamplingSettings,
        temperature=st.sampled_from([0.0, 1.0]),
        repetition_penalty=st.sampled_from([1.0, 1.3]),
        seed=st.integers(0, 9),
    )
    settings = st.builds(GenerationSettings, sampling, st.integers(1, context // 2), st.just(("a",)))
    requests = st.builds(
        Request,
        prompts,
        settings,
        st.sampled_from([None, None, _TIMEOUT_S]),
        st.sampled_from(["", "a", "b"]),
        st.sampled_from(["", "", "other"]),
    )
    count = st.shared(st.integers(1, 7))

    def lists(items: st.SearchStrategy[object]) -> st.SearchStrategy[list[object]]:
        return count.flatmap(lambda size: st.lists(items, min_size=size, max_size=size))

    return st.builds(
        Course,
        lists(requests),
        lists(st.integers(0, 6)),
        lists(st.none() | st.integers(0, 6)),
        st.integers(1, 5),
        st.sampled_from([1.0, 1.5, 4.0]),
    )


def check_course(course: Course, engine: Engine, alone: Callable[[], Engine], tokenizer: Tokenizer) -> None:
    """Run a course on one engine, and check that each answer is that of an engine for itself."""
    clock = Clock()
    kv_bytes = int(course.contexts * engine.max_context * engine.kv_bytes_per_token)
    settings = SchedulerSettings(max_running=course.max_running, kv_bytes=kv_bytes, max_pause_s=3)
    scheduler = Scheduler(engine, tokenizer, settings, clock_s=clock)
    tickets: list[Ticket] = []
    for request, steps, cancelled in zip(course.requests, course.steps, course.cancellations, strict=True):
        tickets.append(submit(scheduler, request))
        for _ in range(steps):
            clock.now_s += 1
            scheduler.step()
            load = scheduler.load()
            assert load.held_tokens <= load.max_held_tokens
        if cancelled is not None and cancelled < len(tickets):
            tickets[cancelled].cancel()
    finish(scheduler)
    with alone() as other:
        expected = [solo(other, tokenizer, request) for request in course.requests]
    results = list(map(_check_ticket, tickets, course.requests, expected))
    for index, result in enumerate(results):
        if result is not None:
            _check_reuse(course.requests, expected, index, result)
    load = scheduler.load()
    assert (load.running, load.waiting, load.totals.faults) == (0, 0, 0)
    assert load.totals.finished + load.totals.cancelled + load.totals.failed == len(tickets)
    scheduler.close()
    assert scheduler.load().held_tokens == 0


def _check_reuse(requests: list[Request], expected: list[Result], index: int, result: Result) -> None:
    """Check that an answer tells of no tokens but those that its own tenant asked or was answered."""
    request = requests[index]
    own = [
        (*other.prompt_ids, *answer.token_ids)
        for place, (other, answer) in enumerate(zip(requests, expected, strict=True))
        if other.tenant == request.tenant and place != index
    ]
    longest = max((common_prefix(ids, request.prompt_ids) for ids in own), default=0)
    assert result.stats.reused_tokens <= longest


def _check_ticket(ticket: Ticket, request: Request, expected: Result) -> Result | None:
    """Check that an answer is what was expected, or a beginning of it when it was stopped; return it."""
    events: list[object] = []
    is_late = False
    try:
        events.extend(ticket)
    except DeadlineError:
        is_late = True
        assert request.timeout_s is not None
    ids = tuple(event.token_id for event in events if isinstance(event, TokenChosen))
    text = "".join(event.text for event in events if isinstance(event, TextPiece))
    result = events[-1] if events and not is_late else None
    if isinstance(result, Result) and result.finish_reason != "cancelled":
        assert (ids, text, result.finish_reason) == (
            expected.token_ids,
            expected.text,
            expected.finish_reason,
        )
        assert result.stats.reused_tokens < len(request.prompt_ids)
    else:
        assert ids == expected.token_ids[: len(ids)]
        assert is_late or ticket.is_cancelled
    if isinstance(result, Result):
        assert (result.text, result.token_ids) == (text, ids)
        return result
    return None
