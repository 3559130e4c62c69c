"""Who gets to the web page, and what it may do to the browser: ASGI middleware in front of the API.

Gradio serves much more than one page needs: uploads, files, a proxy, monitoring. Only the paths below reach
it; every other path is the API's. A Content-Security-Policy holds the browser to this server, so that neither
Gradio nor a picture in an answer can call another one.
Not here: keys of the API (``auth``).
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Collection
from html import escape

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.server.errors import ApiError, error_response
from baichuan2_tpu.server.page.gradio_guards import JOIN_PATH, LISTEN_PATH
from baichuan2_tpu.server.page.texts import TEXTS, choose_language, read_part
from baichuan2_tpu.server.transport.guards import BodyLimit, is_known_key

__all__ = ["PageDoor"]

_SIGN_IN = "/sign-in"
_PATHS = frozenset(
    {
        "/",
        _SIGN_IN,
        "/config",
        "/favicon.ico",
        "/manifest.json",
        "/theme.css",
        "/gradio_api/app_id",
        LISTEN_PATH,
        JOIN_PATH,
    }
)
_FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/")

_COOKIE = "baichuan2_page"
_COOKIE_S = 30 * 24 * 3600

_MAX_FORM_BYTES = 64 * 2**10  # more than any key

# Gradio compiles the functions of its events in the browser ('unsafe-eval') and has scripts in its HTML.
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class PageDoor:
    """Sends the page's paths to ``page``, others to ``app``; if there are ``keys``, the page asks for one."""

    def __init__(self, app: ASGIApp, page: ASGIApp, keys: Collection[str]) -> None:
        self._app = app
        self._page = page
        self._keys = tuple(keys)
        # What the browser shows instead of the key. It tells nothing about the key, and outlives a restart.
        self._passes = tuple(_pass(key) for key in self._keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with the form for the key."""
        if scope["type"] != "http" or not _is_page(scope["path"]):
            await self._app(scope, receive, send)
            return

        is_begun = is_whole = False

        async def send_held(message: Message) -> None:
            nonlocal is_begun, is_whole
            is_begun = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            else:
                is_whole = not message.get("more_body", False)
            await send(message)

        request = Request(scope, receive)
        app = self._refusal(request) or self._page
        try:
            await app(scope, receive, send_held)
        except asyncio.CancelledError:
            # The server ends. A page that is shown listens for ever, so that this is no fault to be logged.
            if not is_begun:
                raise
            if not is_whole:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _refusal(self, request: Request) -> ASGIApp | None:
        """Return what a request gets instead of the page, or None when it may pass."""
        # Browsers say so themselves when another web page is behind a request.
        if request.method == "POST" and request.headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
            return error_response(ApiError("web pages of others may not use this one", status=403))
        if request.url.path == _SIGN_IN:
            return BodyLimit(self._sign_in, _MAX_FORM_BYTES)
        if not self._keys or is_known_key(request.cookies.get(_COOKIE, ""), self._passes):
            return None
        if request.url.path == "/":
            return _form(request, is_wrong=False)
        return error_response(
            ApiError("no valid key; open / to give one", status=401, code="invalid_api_key")
        )

    async def _sign_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._signed_in(Request(scope, receive))
        await answer(scope, receive, send)

    async def _signed_in(self, request: Request) -> Response:
        answer = RedirectResponse("/", status_code=303)
        if request.method == "POST" and self._keys:
            try:
                async with request.form(max_files=0, max_fields=1) as form:
                    key = str(form.get("key", ""))
            # No form, or in an encoding that is none: no key in any case.
            except (HTTPException, MultiPartException, LookupError, UnicodeError):
                key = ""
            if not is_known_key(key, self._keys):
                return _form(request, is_wrong=True)
            answer.set_cookie(
                _COOKIE,
                _pass(key),
                max_age=_COOKIE_S,
                secure=request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
        return answer


def _is_page(path: str) -> bool:
    return path in _PATHS or path.startswith(_FOLDERS)


def _pass(key: str) -> str:
    return hmac.new(key.encode(), b"baichuan2-tpu web page", "sha256").hexdigest()


def _form(request: Request, *, is_wrong: bool) -> Response:
    """Return the form for the key, in the browser's language."""
    language = choose_language(request.headers.get("accept-language", ""))
    texts = TEXTS[language]
    html = read_part("sign_in.html")
    shown = {
        "language": language,
        "title": texts["key"],
        "error": texts["wrong_key"] if is_wrong else "",
        "open": texts["open"],
    }
    for name, text in shown.items():
        html = html.replace(f"{{{{{name}}}}}", escape(text))
    return HTMLResponse(html, status_code=401)
