"""Sending answers, complete or as server-sent events, until the client disconnects.

The status of a stream waits for its first piece, so that an error before it is not sent as "200 OK".
Not here: what is sent (``chat_output``, ``completion``).
Source: server-sent events as in the HTML standard; OpenAI ends a stream with ``data: [DONE]``.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.server.api.output import Writer
from baichuan2_tpu.server.errors import describe
from baichuan2_tpu.server.scheduling.answers import Answers

__all__ = ["send_answers"]

_CLIENT_GONE = 499  # nginx's status for it; only the log shows it
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies must pass pieces on at once

_Value = TypeVar("_Value")


async def send_answers(request: Request, answers: Answers, writer: Writer, *, is_stream: bool) -> Response:
    """Return the response to a request for answers.

    Side effect: answers that nobody can read any more are cancelled.
    """
    try:
        if is_stream:
            return await _EventStream.begin(request, answers, writer)
        with answers:
            complete = await _while_connected(request, answers.collect())
        return _json(writer.write_all(complete))
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)


class _EventStream(StreamingResponse):
    """Server-sent events of answers, which are cancelled when the client disconnects."""

    def __init__(self, answers: Answers, events: AsyncGenerator[str, None], first: str) -> None:
        super().__init__(_prepend(first, events), media_type="text/event-stream", headers=_HEADERS)
        self._answers = answers
        self._events = events

    @classmethod
    async def begin(cls, request: Request, answers: Answers, writer: Writer) -> _EventStream:
        """Wait for the first event. Raises: what the answers raise; ClientDisconnect."""
        events = _events(answers, writer)
        try:
            first = await _while_connected(request, anext(events))
        except BaseException:
            answers.cancel()
            await events.aclose()
            raise
        return cls(answers, events, first)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._answers:
            async with aclosing(self._events):
                await super().__call__(scope, receive, send)


async def _events(answers: Answers, writer: Writer) -> AsyncGenerator[str, None]:
    """Yield every event of a stream."""
    results: dict[int, Result] = {}
    async with aclosing(answers.pieces()) as pieces:
        async for piece in pieces:
            if piece.result is not None:
                results[piece.index] = piece.result
            yield _event(writer.write_piece(piece))
    usage = writer.write_usage([results[index] for index in sorted(results)])
    if usage is not None:
        yield _event(usage)
    yield "data: [DONE]\n\n"


async def _prepend(first: str, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield the first event and the others; an error becomes the last event."""
    yield first
    try:
        async for event in events:
            yield event
    except Exception as error:  # noqa: BLE001 - the boundary of requests: the status is sent already
        yield _event(describe(error).body)


def _event(content: BaseModel) -> str:
    return f"data: {content.model_dump_json()}\n\n"


def _json(content: BaseModel) -> Response:
    return Response(content.model_dump_json(), media_type="application/json")


async def _while_connected(request: Request, work: Awaitable[_Value]) -> _Value:
    """Wait for some work, and cancel it when the client disconnects.

    Raises: ClientDisconnect; what the work raises.
    """
    working = asyncio.ensure_future(work)
    disconnect = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((working, disconnect), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        disconnect.cancel()
        await asyncio.gather(working, disconnect, return_exceptions=True)


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
