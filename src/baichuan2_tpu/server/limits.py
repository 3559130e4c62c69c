"""How large the body of a request may be.

Not here: how much text a model can read (``ContextLengthError``).
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.server.errors import ApiError, error_response

__all__ = ["BodyLimit"]

_MAX_UNREAD_BYTES = 64 * 2**20
"""As much of a body that is too large is read and dropped: a client that is still sending when its connection
is closed does not see the answer."""


class BodyLimit:
    """Reads the body of each request, and refuses one of more than ``max_bytes``; ASGI middleware."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 413."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        first, is_too_large = await self._read(receive)
        if is_too_large:
            message = f"the body has more than the {self._max_bytes} bytes that are allowed; send less"
            await error_response(ApiError(message, status=413, code="body_too_large"))(scope, receive, send)
            return

        waiting = [first]

        async def receive_rest() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, receive_rest, send)

    async def _read(self, receive: Receive) -> tuple[Message, bool]:
        """Return the whole body as one message, and whether it is too large; then it is dropped."""
        body = bytearray()
        total = 0
        is_more = True
        while is_more and total <= max(self._max_bytes, _MAX_UNREAD_BYTES):
            message = await receive()
            if message["type"] != "http.request":
                return message, False
            piece = message.get("body", b"")
            total += len(piece)
            if total <= self._max_bytes:
                body += piece
            is_more = message.get("more_body", False)
        return {"type": "http.request", "body": bytes(body)}, total > self._max_bytes
