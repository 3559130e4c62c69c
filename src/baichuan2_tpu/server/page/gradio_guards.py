"""What a browser may send to Gradio's queue: events of this page, and of them what Gradio needs.

Gradio prints a traceback, with what a client sent in it, for anything it did not expect. So that no line of
the log is a client's, it gets nothing else.
Not here: what is in a turn (``answering``).
Source: ``PredictBody`` of Gradio 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.server.errors import ApiError, error_response

__all__ = ["JOIN_PATH", "NO_EVENT", "EventFilter"]

JOIN_PATH = "/gradio_api/queue/join"

NO_EVENT = "this is no event of the page; load it anew"
"""What who sent something else is told."""


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
