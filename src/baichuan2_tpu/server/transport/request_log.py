"""A log line and an id for every HTTP request.

Not here: the form of log lines, and the line of an answer (``log_lines``); the line when the scheduler takes
a request (``service``).
"""

from __future__ import annotations

import logging
import time
import uuid

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.server.log_lines import log_event, request_id, request_path

__all__ = ["RequestLog"]

_log = logging.getLogger(__name__)

_MAX_PATH = 200  # characters that are logged; a request head may have 64 KB
_QUIET_PATHS = ("/health", "/metrics")
"""Asked for every few seconds by supervisors; logged only at level debug."""


class RequestLog:
    """Logs every HTTP request when it is over, and gives it an id; ASGI middleware.

    Every log line of the request has the id, and so has the header ``x-request-id``, which OpenAI's client
    reads.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and log how it was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _RequestRecord(scope, send)
        id_token, path_token = request_id.set(record.id), request_path.set(record.path)
        try:
            await self._app(scope, receive, record.send)
        finally:
            record.log()
            request_id.reset(id_token)
            request_path.reset(path_token)


class _RequestRecord:
    """What is known of one request."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.id = f"req-{uuid.uuid4().hex}"
        self.path = scope["path"][:_MAX_PATH]
        self._scope = scope
        self._send = send
        self._start_s = time.perf_counter()
        self._status: int | None = None
        self._is_complete = False

    async def send(self, message: Message) -> None:
        """Pass a message of the answer on."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.id
        elif message["type"] == "http.response.body":
            self._is_complete = not message.get("more_body", False)
        await self._send(message)

    def log(self) -> None:
        """Log a request that is over."""
        client = self._scope.get("client")
        log_event(
            _log,
            "request",
            level=logging.DEBUG if self.path.startswith(_QUIET_PATHS) else logging.INFO,
            client=client[0] if client else None,
            method=self._scope["method"],
            path=self.path,
            status=self._status,
            whole=self._is_complete,
            seconds=round(time.perf_counter() - self._start_s, 3),
        )
