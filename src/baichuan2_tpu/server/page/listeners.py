"""Which open pages listen: Gradio answers a turn whether anybody reads it or not.

Not here: what a page is told (``answering``).
"""

from __future__ import annotations

from collections import Counter

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["LISTEN_PATH", "ListenerWatch", "Listeners"]

LISTEN_PATH = "/gradio_api/queue/data"


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
