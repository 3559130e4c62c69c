"""Requests that mean a path of the API and write it, its method or its content type otherwise.

Base URLs lack ``/v1`` or end in a slash, so that clients send ``/chat/completions`` and ``//v1/models``; curl
calls every body a form; proxies ask by HEAD. Not here: which path is meant (``known_paths``).
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.server.known_paths import api_path

__all__ = ["TidyPath"]


class TidyPath:
    """Takes a request for what it means; ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with the path, method and content type that the API knows."""
        path = api_path(scope["path"]) if scope["type"] == "http" else None
        if path is None:
            await self._app(scope, receive, send)
            return
        tidy = {**scope, "path": path, "raw_path": path.encode(), "headers": list(scope["headers"])}
        if scope["method"] == "HEAD":
            tidy["method"], send = "GET", _without_body(send)
        # A page in a browser names its origin, and must not get around the check of content types.
        elif scope["method"] == "POST" and "origin" not in Headers(scope=scope):
            MutableHeaders(scope=tidy)["content-type"] = "application/json"
        await self._app(tidy, receive, send)


def _without_body(send: Send) -> Send:
    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head
