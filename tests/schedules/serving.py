"""What tests of the scheduler share: a clock that stands still, requests, and their answers alone."""

from __future__ import annotations

from collections.abc import Iterable

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.generate.events import Event, Result
from baichuan2_tpu.generate.loop import generate
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.server.scheduling.scheduler import Scheduler
from baichuan2_tpu.server.scheduling.ticket import Request, Ticket
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["Clock", "finish", "greedy", "read", "request", "result_of", "solo", "submit"]


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def greedy(max_tokens: int = 8, **changes: object) -> GenerationSettings:
    """Return settings that always choose the most likely token."""
    sampling = SamplingSettings(temperature=0)
    return GenerationSettings(sampling, max_tokens, **changes)  # pyright: ignore[reportArgumentType]


def request(
    prompt: Iterable[int],
    max_tokens: int = 8,
    *,
    settings: GenerationSettings | None = None,
    timeout_s: float | None = None,
    client: str = "",
    tenant: str = "",
) -> Request:
    """Return a request, greedy unless it has settings."""
    return Request(tuple(prompt), settings or greedy(max_tokens), timeout_s, client, tenant)


def submit(scheduler: Scheduler, request: Request) -> Ticket:
    """Queue one request."""
    (ticket,) = scheduler.submit([request])
    return ticket


def finish(scheduler: Scheduler) -> None:
    """Step until nothing is left to do."""
    while scheduler.step():
        pass


def read(ticket: Ticket) -> list[Event]:
    """Return the events of a ticket that is over; its error is raised."""
    assert ticket.is_over
    return list(ticket)


def result_of(ticket: Ticket) -> Result:
    """Return the answer of a ticket that is over."""
    result = read(ticket)[-1]
    assert isinstance(result, Result)
    return result


def solo(engine: Engine, tokenizer: Tokenizer, single: Request) -> Result:
    """Return the answer to a request that has an engine for itself."""
    with TrackedSequence(engine) as sequence:
        *_, result = generate(sequence, tokenizer, single.prompt_ids, single.settings)
    assert isinstance(result, Result)
    return result
