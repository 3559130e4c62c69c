"""Requests that a browser sends for another web site are refused before anything of them is read.

A site that a user opens can make the user's browser send requests to this server. Two checks stop that. The
``Host`` header must be a name of this server, so that a site cannot point its own name here (DNS rebinding);
and an ``Origin`` header, which browsers add and no site can change, must be this server itself or one that is
allowed. Programs send no ``Origin``, and their ``Host`` is what they were given as address.
Not here: the headers that let an allowed site read answers (``CORSMiddleware``), keys (``guards``).
Source: the Fetch standard, "Origin header"; RFC 9110, 7.2. Numeric hosts are not looked up, and nobody can
register a name without a dot, as services in Docker's networks have, or one that ends in ``.internal``, as
``host.docker.internal`` does, or in ``.localhost``: none of them can be rebound.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from baichuan2_tpu.quoting import quote
from baichuan2_tpu.server.errors import ApiError, error_response

__all__ = ["SiteGuard", "own_names"]

_ANY = "*"
_RESERVED = (".internal", ".localhost")
"""Ends of names that nobody can register. Source: ICANN's resolution of 2024-07-29; RFC 6761, 6.3."""


class SiteGuard:
    """Answers for its own names, and to pages of its own or of allowed sites; ASGI middleware.

    ``names`` are the hosts it answers for besides numeric addresses and local names, ``*`` for all;
    ``origins`` the web sites whose pages may use it, ``*`` for all.
    """

    def __init__(self, app: ASGIApp, names: Collection[str], origins: Collection[str] = ()) -> None:
        self._app = app
        self._names = frozenset(name.lower().rstrip(".") for name in names)
        self._origins = frozenset(origin.lower() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 403 or 421."""
        error = self._refusal(Headers(scope=scope)) if scope["type"] != "lifespan" else None
        await (self._app if error is None else error_response(error))(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if host and not self._is_own(host):
            return ApiError(
                f"this server does not answer for the host {quote(host)}; use its address, or start it with "
                "--allowed-host and that name",
                status=421,
                code="unknown_host",
            )
        origin = headers.get("origin")
        if origin is None or self._is_allowed(origin.lower(), host):
            return None
        return ApiError(
            f"pages of {quote(origin)} may not use this server; start it with --cors-origin and that origin",
            status=403,
            code="unknown_origin",
        )

    def _is_own(self, host: str) -> bool:
        name = _host_name(host)
        return name is not None and (_ANY in self._names or name in self._names or _is_local(name))

    def _is_allowed(self, origin: str, host: str) -> bool:
        if _ANY in self._origins or origin in self._origins:
            return True
        # A proxy that ends TLS in front of us changes the scheme of the origin, not its host.
        scheme, _, place = origin.partition("://")
        return scheme in ("http", "https") and bool(host) and place == host.lower()


def own_names(host: str) -> frozenset[str]:
    """Return the names with a dot that lead to a server that listens on ``host``."""
    own = socket.gethostname().lower()
    return frozenset({host.lower(), own, f"{own.partition('.')[0]}.local"})


def _host_name(host: str) -> str | None:
    """Return the host of a ``Host`` header without its port, in lower case; None for what is no host."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises where it is no number
    except ValueError:
        return None
    is_plain = not (parts.path or parts.query or parts.fragment or parts.username)
    return parts.hostname.rstrip(".") if parts.hostname and is_plain else None


def _is_local(name: str) -> bool:
    """Tell whether no name server that a stranger owns is asked for a host."""
    if "." not in name or name.endswith(_RESERVED):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
