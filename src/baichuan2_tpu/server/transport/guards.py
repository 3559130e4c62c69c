"""What is checked before a request is handled: its key, the size of its body, and the time to receive it.

Not here: where keys come from (``cli.serve_run``), how much text a model can read (``ContextLengthError``).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.errors import QueueFull, ServiceError, ShutdownError
from baichuan2_tpu.server.errors import ApiError, error_response
from baichuan2_tpu.server.tenants import ShareRule, current_holder, current_tenant, holder_of, tenant_of
from baichuan2_tpu.server.transport.body_counts import LARGE_BYTES, check_counts

__all__ = ["BodyLimit", "KeyGuard", "is_known_key"]

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
"""Paths that need no key, for supervisors; they reveal nothing about requests."""

_MAX_UNREAD_BYTES = 64 * 2**20
"""How much of a body that is too large is read and dropped: a client that still sends when its connection is
closed does not see the error."""
_MAX_REQUESTS = 256
"""Requests with a body that are in work at once, where nothing else says how many."""
_BODY_S = 60
"""Time to receive a body: 4 MB take it over a line of 0.5 Mbit/s."""


class KeyGuard:
    """Requires ``Authorization: Bearer KEY`` with one of the keys; ASGI middleware.

    What a request leads to runs with its key's ``current_tenant`` and ``current_holder``.
    """

    def __init__(self, app: ASGIApp, keys: Collection[str], share: ShareRule = "key") -> None:
        self._app = app
        self._keys = tuple(keys)
        self._share: ShareRule = share

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and is_known_key(key, self._keys):
            tenant = current_tenant.set(tenant_of(key, self._share))
            holder = current_holder.set(holder_of(key))
            try:
                await self._app(scope, receive, send)
            finally:
                current_holder.reset(holder)
                current_tenant.reset(tenant)
            return
        error = ApiError(
            "no valid API key; send the header Authorization: Bearer KEY", status=401, code="invalid_api_key"
        )
        await error_response(error)(scope, receive, send)


def is_known_key(key: str, keys: Collection[str]) -> bool:
    """Tell whether a key is one of ``keys``, in constant time."""
    key_bytes = key.encode("utf-8", "surrogatepass")  # a client's text need not be valid Unicode
    # All are compared, whichever matches.
    matches = [hmac.compare_digest(key_bytes, known.encode()) for known in keys]
    return any(matches)


class BodyLimit:
    """Reads the body of each request, and refuses one that is too large or too slow; ASGI middleware.

    ``max_requests`` requests with a body are passed on at once: each holds its body, and most wait for a
    thread.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, max_requests: int = _MAX_REQUESTS) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._max_requests = max_requests
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 408, 413, 422, 429 or 503; it ends here if its client left."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            first = await self._read_in_time(receive)
            if first["type"] != "http.request":
                return
            self._check_room(first["body"])
        except (ApiError, ServiceError) as error:
            await error_response(error)(scope, receive, send)
            return

        unread = [first]

        async def receive_rest() -> Message:
            return unread.pop() if unread else await receive()

        body: bytes = first["body"]
        count = int(bool(body))
        self._requests += count
        try:
            app = await self._app_for(body)
            await app(scope, receive_rest, send)
        finally:
            self._requests -= count

    async def _app_for(self, body: bytes) -> ASGIApp:
        """Return the app, or the response that refuses a body with too many values in it."""
        if len(body) > LARGE_BYTES:
            try:
                await run_in_threadpool(check_counts, body)
            except ApiError as error:
                return error_response(error)
        return self._app

    def _check_room(self, body: bytes) -> None:
        """Check that one more request may be in work. Raises: QueueFull."""
        if body and self._requests >= self._max_requests:
            message = f"{self._requests} requests are in work; no more are allowed; try again in 1 s"
            raise QueueFull(message, retry_after_s=1)

    async def _read_in_time(self, receive: Receive) -> Message:
        """Return what ``_read`` does. Raises: ApiError when it takes too long; ShutdownError."""
        try:
            return await asyncio.wait_for(self._read(receive), _BODY_S)
        except asyncio.TimeoutError as error:
            message = f"the body was not complete after {_BODY_S} s; send it faster, or send less"
            raise ApiError(message, status=408, code="request_timeout") from error
        except asyncio.CancelledError as error:  # the server shuts down, and waits only for this answer
            raise ShutdownError("the server is shutting down; try another server") from error

    async def _read(self, receive: Receive) -> Message:
        """Return the complete body as one message, or the message that the client has left.

        Raises: ApiError when it is too large.
        """
        body = bytearray()
        total = 0
        is_more = True
        while is_more and total <= max(self._max_bytes, _MAX_UNREAD_BYTES):
            message = await receive()
            if message["type"] != "http.request":
                return message
            piece = message.get("body", b"")
            total += len(piece)
            if total <= self._max_bytes:
                body += piece
            is_more = message.get("more_body", False)
        if total > self._max_bytes:
            message = f"the body is larger than the {self._max_bytes} bytes that are allowed; send less"
            raise ApiError(message, status=413, code="body_too_large")
        return {"type": "http.request", "body": bytes(body)}
