"""Log lines for machines: ``key=value`` or JSON, one line an event, two events a request.

No line holds what a client wrote or a model answered. Escape sequences that a client puts into a path are
written as text. Not here: where lines go and from which level on (``cli.serve``).
Source of the form: logfmt, as read by Loki and others.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from contextvars import ContextVar
from datetime import datetime, timezone
from typing import Literal

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.generate.events import Event, Result

__all__ = ["LineFormatter", "LogForm", "RequestLog", "log_answer", "log_event"]

LogForm = Literal["text", "json"]

_log = logging.getLogger(__name__)
_request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_BARE = re.compile(r"[A-Za-z0-9_./:@%+,-]+")
_MAX_PATH = 200  # characters that are logged; a head may have 64 KB
_QUIET_PATHS = ("/health", "/metrics")
"""What supervisors ask every few seconds; logged from level debug on."""


def log_event(logger: logging.Logger, event: str, *, level: int = logging.INFO, **fields: object) -> None:
    """Log an event with fields of its own; those that are None are left out."""
    logger.log(level, event, extra={"fields": fields})


async def log_answer(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
    """Pass the events of an answer on, and log what it took when it is over."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Result):
                stats = event.stats
                log_event(
                    _log,
                    "answer",
                    finish_reason=event.finish_reason,
                    prompt_tokens=stats.prompt_tokens,
                    reused_tokens=stats.reused_tokens,
                    generated_tokens=stats.generated_tokens,
                    first_token_s=_rounded(stats.first_token_s),
                    tok_per_s=_rounded(stats.tok_per_s),
                )
            yield event


class LineFormatter(logging.Formatter):
    """Writes a record as one line: time, level, event, the request it belongs to, and its fields."""

    def __init__(self, form: LogForm) -> None:
        super().__init__()
        self._form = form

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. A traceback is a field of it."""
        fields: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "request": _request_id.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        said = {name: value for name, value in fields.items() if value is not None}
        if self._form == "json":
            return json.dumps(said, default=str)
        return " ".join(f"{name}={_quoted(value)}" for name, value in said.items())


class RequestLog:
    """Logs every HTTP request when it is over, and gives it an id; ASGI middleware.

    The id is in every line of the request and in the header ``x-request-id``, where OpenAI's client looks.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and note how it was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        note = _Note(scope, send)
        token = _request_id.set(note.id)
        try:
            await self._app(scope, receive, note.send)
        finally:
            note.log()
            _request_id.reset(token)


class _Note:
    """What is known of one request."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.id = f"req-{uuid.uuid4().hex}"
        self._scope = scope
        self._send = send
        self._start_s = time.perf_counter()
        self._status: int | None = None
        self._is_whole = False

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.id
        elif message["type"] == "http.response.body":
            self._is_whole = not message.get("more_body", False)
        await self._send(message)

    def log(self) -> None:
        """Write the line of a request that is over."""
        client, path = self._scope.get("client"), self._scope["path"]
        log_event(
            _log,
            "request",
            level=logging.DEBUG if path.startswith(_QUIET_PATHS) else logging.INFO,
            client=client[0] if client else None,
            method=self._scope["method"],
            path=path[:_MAX_PATH],
            status=self._status,
            whole=self._is_whole,
            seconds=round(time.perf_counter() - self._start_s, 3),
        )


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _quoted(value: object) -> str:
    """Return a value bare where nobody can mistake it, else as a JSON string in ASCII."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return text if _BARE.fullmatch(text) else json.dumps(text)
