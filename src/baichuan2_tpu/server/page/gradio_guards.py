"""What a browser may send to Gradio's queue, which open pages still listen, and how often Gradio looks.

Gradio prints a traceback that quotes the client for anything unexpected. To keep clients' text out of the
log, only events of this page reach it, with only the fields it needs. Gradio also answers a turn whether
anybody reads it or not; here it is noticed when a page has gone.
Not here: what is in a turn (``turns``).
Source: ``PredictBody`` and ``Queue`` of Gradio 6.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from gradio.queueing import Queue
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.server.errors import ApiError, error_response

__all__ = ["JOIN_PATH", "LISTEN_PATH", "NO_EVENT", "EventFilter", "ListenerWatch", "Listeners", "QueuePace"]

JOIN_PATH = "/gradio_api/queue/join"
NO_EVENT = "this is not an event of the page; reload it"
"""The error for anything else that is sent."""

LISTEN_PATH = "/gradio_api/queue/data"

_OPEN_S = 0.05
_IDLE_S = 2
"""Time between two looks at the queue while a page is open, and while none is. It is over before somebody who
opens the page has typed a question."""
_NEVER_S = 86_400


class _Event(BaseModel):
    """One event; other fields are dropped."""

    model_config = ConfigDict(strict=True)

    session_hash: str = Field(pattern="^[0-9A-Za-z_-]{1,64}$")
    fn_index: int
    data: list[Any]
    event_data: Any = None
    trigger_id: int | None = None


class EventFilter:
    """Passes on events for the functions in ``inputs``, which has their numbers of inputs; ASGI middleware.

    It belongs behind ``BodyLimit``, which passes complete bodies.
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
        unread: list[Message] = [{"type": "http.request", "body": event.model_dump_json().encode()}]

        async def receive_event() -> Message:
            return unread.pop() if unread else await receive()

        await self._app(scope, receive_event, send)

    def _read(self, body: bytes) -> _Event | None:
        try:
            event = _Event.model_validate_json(body)
        except ValidationError:
            return None
        return event if self._inputs.get(event.fn_index) == len(event.data) else None


class Listeners:
    """The pages that listen now, by the session id that each page chose."""

    def __init__(self) -> None:
        self._streams: Counter[str] = Counter()

    def add(self, session: str) -> None:
        """Record that a page begins to listen."""
        self._streams[session] += 1

    def remove(self, session: str) -> None:
        """Record that a page no longer listens."""
        self._streams[session] -= 1
        if not self._streams[session]:
            del self._streams[session]

    def has(self, session: str) -> bool:
        """Tell whether a page listens."""
        return session in self._streams


class ListenerWatch:
    """Records in ``listeners`` which pages listen; ASGI middleware."""

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


class QueuePace:
    """Lets Gradio look at its queue seldom while no page is open; ASGI middleware.

    Gradio looks a thousand times per second, which takes 4 % of a core. An open page always has a request in
    work: Gradio's heartbeat.
    """

    def __init__(self, app: ASGIApp, queue: Queue) -> None:
        self._app = app
        self._queue = queue
        self._requests = 0
        queue.sleep_when_free = _IDLE_S
        queue.progress_update_sleep_when_free = _NEVER_S  # the page has none of Gradio's progress bars

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        self._requests += 1
        self._queue.sleep_when_free = _OPEN_S
        try:
            await self._app(scope, receive, send)
        finally:
            self._requests -= 1
            if not self._requests:
                self._queue.sleep_when_free = _IDLE_S
