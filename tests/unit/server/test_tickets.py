"""A ticket hands every event over once and in order, to a thread or an event loop, and notices who leaves."""

from __future__ import annotations

import asyncio
import threading
from contextlib import aclosing, closing

import pytest

from baichuan2_tpu.errors import BackendError
from baichuan2_tpu.generate.events import Event, Result, Stats, TextPiece, TokenChosen
from baichuan2_tpu.server.scheduling.ticket import Ticket

RESULT = Result("ab", (1, 2), "stop", Stats(1, 0, 2, None, None, None))
EVENTS: list[Event] = [TokenChosen(1), TextPiece("a"), TokenChosen(2), TextPiece("b"), RESULT]


def put_all(ticket: Ticket) -> None:
    for event in EVENTS:
        ticket.put(event)


async def read_all(ticket: Ticket) -> list[Event]:
    return [event async for event in ticket]


def test_events_put_before_reading_are_read_in_order() -> None:
    ticket = Ticket()
    put_all(ticket)
    assert list(ticket) == EVENTS


def test_events_put_before_reading_are_read_in_order_by_an_event_loop() -> None:
    ticket = Ticket()
    put_all(ticket)
    assert asyncio.run(read_all(ticket)) == EVENTS


def test_a_reader_in_a_thread_waits_for_what_comes() -> None:
    ticket = Ticket()
    writer = threading.Thread(target=put_all, args=(ticket,))
    events = iter(ticket)
    writer.start()
    assert list(events) == EVENTS
    writer.join()


def test_a_reader_in_an_event_loop_waits_for_what_comes() -> None:
    async def read_beside_writer() -> list[Event]:
        ticket = Ticket()
        reading = asyncio.create_task(read_all(ticket))
        await asyncio.sleep(0)
        await asyncio.to_thread(put_all, ticket)
        return await reading

    assert asyncio.run(read_beside_writer()) == EVENTS


def test_a_ticket_that_was_read_has_nothing_more() -> None:
    ticket = Ticket()
    put_all(ticket)
    assert list(ticket) == EVENTS
    assert list(ticket) == []
    assert asyncio.run(read_all(ticket)) == []


def test_an_error_ends_reading_behind_the_events_before_it() -> None:
    ticket = Ticket()
    ticket.put(EVENTS[0])
    ticket.put(BackendError("broken"))
    assert (ticket.is_over, ticket.is_failed) == (True, True)
    events = iter(ticket)
    assert next(events) == EVENTS[0]
    with pytest.raises(BackendError, match="broken"):
        next(events)


def test_to_stop_reading_is_to_cancel() -> None:
    ticket = Ticket()
    ticket.put(EVENTS[0])
    with closing(iter(ticket)) as events:
        next(events)
        assert not ticket.is_cancelled
    assert ticket.is_cancelled


def test_a_task_that_is_cancelled_while_it_waits_cancels_the_answer() -> None:
    async def read_and_leave(ticket: Ticket) -> None:
        reading = asyncio.create_task(read_all(ticket))
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading

    ticket = Ticket()
    asyncio.run(read_and_leave(ticket))
    assert ticket.is_cancelled


def test_an_event_loop_that_closed_cancels_the_answer() -> None:
    async def read_one(ticket: Ticket) -> None:
        async with aclosing(aiter(ticket)) as events:  # pyright: ignore[reportArgumentType] - a generator
            await anext(events)
            ticket._notify_reader, kept = None, ticket._notify_reader
        ticket._notify_reader = kept

    ticket = Ticket()
    ticket.put(EVENTS[0])
    asyncio.run(read_one(ticket))
    ticket._is_cancelled = False
    ticket.put(EVENTS[1])
    assert ticket.is_cancelled
