"""Sending answers, complete or as server-sent events, until the client disconnects.

While a prompt waits or is read, a stream has comments, which clients skip, and a complete answer begins with
line feeds, which JSON allows, if its client asked for them.
Not here: what is sent (``chat_output``, ``completion``), keeping a connection alive (``live_response``).
Source: server-sent events as in the HTML standard; OpenAI ends a stream with ``data: [DONE]``; RFC 8259, 2,
for white space in front of a JSON value.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Annotated, TypeVar

from fastapi import Depends, Header
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.server.api.live_response import LiveResponse
from baichuan2_tpu.server.api.output import Writer
from baichuan2_tpu.server.errors import ApiError, ErrorBody
from baichuan2_tpu.server.scheduling.answers import Answers, WholeAnswer

__all__ = ["KeepAlive", "send_answers", "send_events", "send_whole"]

_CLIENT_GONE = 499  # nginx's status for it; only the log shows it
_JSON = "application/json"

_Value = TypeVar("_Value")
_WriteAll = Callable[[Sequence[WholeAnswer]], BaseModel]


async def _is_kept_alive(
    x_keep_alive: Annotated[
        str | None,
        Header(
            description="With true, a complete answer begins with line feeds, one every few seconds while "
            "it is computed, and an error after its head is an error object with status 200. A stream is "
            "kept alive in any case."
        ),
    ] = None,
) -> bool:
    if x_keep_alive not in (None, "true", "false"):
        message = f"the header x-keep-alive is {quote(x_keep_alive)}; true or false is allowed"
        raise ApiError(message, param="x-keep-alive")
    return x_keep_alive == "true"


KeepAlive = Annotated[bool, Depends(_is_kept_alive)]
"""A handler's parameter: whether its client asked for a complete answer that is kept alive."""


async def send_answers(
    request: Request, answers: Answers, writer: Writer, *, is_stream: bool, is_kept_alive: bool
) -> Response:
    """Return the response to a request for answers, as a stream or all at once; see the functions below."""
    if is_stream:
        return send_events(answers, _events(answers, writer))
    return await send_whole(request, answers, writer.write_all, is_kept_alive=is_kept_alive)


def send_events(
    answers: Answers,
    events: AsyncGenerator[str, None],
    write_error: Callable[[ErrorBody], str] | None = None,
) -> Response:
    """Return a response whose head goes out at once; comments follow while there is no event to send.

    ``events`` yields complete events, ``data: ...`` and an empty line. The first error ends them, as an
    event: OpenAI's error object unless ``write_error`` writes another.
    Side effect: when the client disconnects, the answers are cancelled.
    """
    return LiveResponse(
        answers,
        events,
        filler=lambda: _comment(answers),
        write_error=write_error or _event,
        media_type="text/event-stream",
    )


async def send_whole(
    request: Request, answers: Answers, write_all: _WriteAll, *, is_kept_alive: bool
) -> Response:
    """Return the response with all answers at once.

    With ``is_kept_alive`` its head goes out at once and line feeds follow until the answers are complete; an
    error is then an error object with status 200.
    Side effect: when the client disconnects, the answers are cancelled.
    """
    if is_kept_alive:
        return LiveResponse(
            answers,
            _whole(answers, write_all),
            filler=lambda: "\n",
            write_error=lambda error: error.model_dump_json(),
            media_type=_JSON,
        )
    try:
        with answers:
            complete = await _while_connected(request, answers.collect())
        return Response(write_all(complete).model_dump_json(), media_type=_JSON)
    except ClientDisconnect:
        return Response(status_code=_CLIENT_GONE)


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


async def _whole(answers: Answers, write_all: _WriteAll) -> AsyncGenerator[str, None]:
    yield write_all(await answers.collect()).model_dump_json()


def _event(content: BaseModel) -> str:
    return f"data: {content.model_dump_json()}\n\n"


def _comment(answers: Answers) -> str:
    """Return a comment that says what is waited for."""
    progress = answers.progress
    if progress is None:
        return ": waiting\n\n"
    if progress.is_complete:
        return ": writing\n\n"
    return f": reading {progress.read_tokens} of {progress.prompt_tokens}\n\n"


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
