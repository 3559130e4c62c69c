"""Who may open the web page, and what the browser may load: ASGI middleware in front of the API.

Gradio serves much more than one page needs: uploads, files, a proxy, monitoring. Only the paths below reach
it; every other path belongs to the API. A Content-Security-Policy allows the browser to contact this server
only, so that neither Gradio nor an image in an answer can reach another one.
Not here: keys of the API (``transport.guards``).
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
from baichuan2_tpu.server.tenants import ShareRule, tenant_of
from baichuan2_tpu.server.transport.guards import BodyLimit, is_known_key

__all__ = ["PageAccess"]

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

# Gradio compiles event functions in the browser ('unsafe-eval') and has inline scripts in its HTML.
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


class PageAccess:
    """Sends the page's paths to ``page``, others to ``app``; if there are ``keys``, the page asks for one.

    The tenant of the key is in the state of the scope: Gradio answers turns in tasks of its own.
    """

    def __init__(self, app: ASGIApp, page: ASGIApp, keys: Collection[str], share: ShareRule = "key") -> None:
        self._app = app
        self._page = page
        self._keys = tuple(keys)
        # What the cookie holds instead of the key: it does not reveal it, and is the same after a restart.
        self._tenants = {_cookie_value(key): tenant_of(key, share) for key in self._keys}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with the form for the key."""
        if scope["type"] != "http" or not _is_page(scope["path"]):
            await self._app(scope, receive, send)
            return

        is_started = is_complete = False

        async def send_with_policy(message: Message) -> None:
            nonlocal is_started, is_complete
            is_started = True
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            else:
                is_complete = not message.get("more_body", False)
            await send(message)

        request = Request(scope, receive)
        app = self._refusal(request) or self._page
        try:
            await app(scope, receive, send_with_policy)
        except asyncio.CancelledError:
            # The server shuts down. An open page listens for ever, so this is not an error to log.
            if not is_started:
                raise
            if not is_complete:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _refusal(self, request: Request) -> ASGIApp | None:
        """Return the response that a request gets instead of the page, or None if it is allowed."""
        # Browsers send this header when the page of another site makes a request.
        if request.method == "POST" and request.headers.get("sec-fetch-site") in {"cross-site", "same-site"}:
            return error_response(ApiError("pages of other web sites may not use this page", status=403))
        if request.url.path == _SIGN_IN:
            return BodyLimit(self._sign_in, _MAX_FORM_BYTES)
        cookie = request.cookies.get(_COOKIE, "")
        if not self._keys:
            return None
        if is_known_key(cookie, self._tenants):
            request.state.tenant = self._tenants[cookie]
            return None
        if request.url.path == "/":
            return _form(request, is_wrong=False)
        return error_response(
            ApiError("no valid API key; open / and sign in", status=401, code="invalid_api_key")
        )

    async def _sign_in(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = await self._check_sign_in(Request(scope, receive))
        await response(scope, receive, send)

    async def _check_sign_in(self, request: Request) -> Response:
        response = RedirectResponse("/", status_code=303)
        if request.method == "POST" and self._keys:
            try:
                async with request.form(max_files=0, max_fields=1) as form:
                    key = str(form.get("key", ""))
            # Not a form, or an unknown encoding: treat as no key.
            except (HTTPException, MultiPartException, LookupError, UnicodeError):
                key = ""
            if not is_known_key(key, self._keys):
                return _form(request, is_wrong=True)
            response.set_cookie(
                _COOKIE,
                _cookie_value(key),
                max_age=_COOKIE_S,
                secure=request.url.scheme == "https",
                httponly=True,
                samesite="strict",
            )
        return response


def _is_page(path: str) -> bool:
    return path in _PATHS or path.startswith(_FOLDERS)


def _cookie_value(key: str) -> str:
    return hmac.new(key.encode(), b"baichuan2-tpu web page", "sha256").hexdigest()


def _form(request: Request, *, is_wrong: bool) -> Response:
    """Return the form for the key, in the browser's language."""
    language = choose_language(request.headers.get("accept-language", ""))
    texts = TEXTS[language]
    html = read_part("sign_in.html")
    values = {
        "language": language,
        "title": texts["key"],
        "error": texts["wrong_key"] if is_wrong else "",
        "open": texts["open"],
    }
    for name, text in values.items():
        html = html.replace(f"{{{{{name}}}}}", escape(text))
    return HTMLResponse(html, status_code=401)
