"""What a browser may send to Gradio's queue, and which open pages still listen.

Gradio prints a traceback, with what a client sent in it, for anything it did not expect. So that no line of
the log is a client's, it gets events of this page alone, and of them what it needs. And it answers a turn
whether anybody reads it or not; here a page that has gone is noticed.
Not here: what is in a turn (``turns``).
Source: ``PredictBody`` of Gradio 6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.server.errors import ApiError, error_response

__all__ = ["JOIN_PATH", "LISTEN_PATH", "NO_EVENT", "EventFilter", "ListenerWatch", "Listeners"]

JOIN_PATH = "/gradio_api/queue/join"
NO_EVENT = "this is no event of the page; load it anew"
"""What who sent something else is told."""

LISTEN_PATH = "/gradio_api/queue/data"


class _Event(BaseModel):
    """One event; what else is sent beside these fields is dropped."""

    model_config = ConfigDict(strict=True)

    session_hash: str = Field(pattern="^[0-9A-Za-z_-]{1,64}$")
    fn_index: int
    data: list[Any]
    event_data: Any = None
    trigger_id: int | None = None


class EventFilter:
    """Passes on events for functions whose number of inputs is in ``inputs``; ASGI middleware.

    Behind ``BodyLimit``, which hands whole bodies over.
    """

    def __init__(self, app: ASGIApp, inputs: Mapping[int, int]) -> None:
        self._app = app
        self._inputs = dict(inputs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 422."""
        if scope["type"] != "http" or scope["path"] != JOIN_PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        event = self._read(await Request(scope, receive).body())
        if event is None:
            error = ApiError(NO_EVENT, status=422, code="invalid_value")
            await error_response(error)(scope, receive, send)
            return
        checked: list[Message] = [{"type": "http.request", "body": event.model_dump_json().encode()}]

        async def receive_checked() -> Message:
            return checked.pop() if checked else await receive()

        await self._app(scope, receive_checked, send)

    def _read(self, body: bytes) -> _Event | None:
        try:
            event = _Event.model_validate_json(body)
        except ValidationError:
            return None
        return event if self._inputs.get(event.fn_index) == len(event.data) else None


class Listeners:
    """The pages that listen now, by the session each has made up for itself."""

    def __init__(self) -> None:
        self._streams: Counter[str] = Counter()

    def add(self, session: str) -> None:
        """Note that a page begins to listen."""
        self._streams[session] += 1

    def remove(self, session: str) -> None:
        """Note that a page listens no more."""
        self._streams[session] -= 1
        if not self._streams[session]:
            del self._streams[session]

    def has(self, session: str) -> bool:
        """Tell whether a page listens."""
        return session in self._streams


class ListenerWatch:
    """Notes in ``listeners`` who listens, and how long; ASGI middleware."""

    def __init__(self, app: ASGIApp, listeners: Listeners) -> None:
        self._app = app
        self._listeners = listeners

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["path"] != LISTEN_PATH:
            await self._app(scope, receive, send)
            return
        session = Request(scope).query_params.get("session_hash", "")
        self._listeners.add(session)
        try:
            await self._app(scope, receive, send)
        finally:
            self._listeners.remove(session)
