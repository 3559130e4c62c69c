"""Keys: who has none is told so before anything of the request is read.

Not here: where keys come from (``cli``).
"""

from __future__ import annotations

import hmac
from collections.abc import Collection

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from baichuan2_tpu.server.errors import ApiError, error_response

__all__ = ["KeyGuard", "is_known_key"]

OPEN_PATHS = frozenset({"/health", "/health/live", "/health/ready"})
"""What a supervisor asks without a key; it tells nothing about requests."""


class KeyGuard:
    """Lets through what has ``Authorization: Bearer KEY`` with one of the keys; ASGI middleware."""

    def __init__(self, app: ASGIApp, keys: Collection[str]) -> None:
        self._app = app
        self._keys = tuple(keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 401."""
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            "no valid API key; send the header Authorization: Bearer KEY", status=401, code="invalid_api_key"
        )
        await error_response(error)(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and is_known_key(key, self._keys)


def is_known_key(key: str, keys: Collection[str]) -> bool:
    """Tell whether a key is one of ``keys``, in a time that says nothing about them."""
    said = key.encode("utf-8", "surrogatepass")  # a client's text need not be Unicode
    # All are compared, whichever matches.
    matches = [hmac.compare_digest(said, known.encode()) for known in keys]
    return any(matches)
