"""The HTTP app: routes, keys, limits and errors put together.

Not here: listening on a port (``transport.listening``), the web page (``page.gradio_app``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from starlette.middleware.cors import CORSMiddleware

from baichuan2_tpu import __version__
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.server.api.responses.routes import response_routes
from baichuan2_tpu.server.api.responses.store import ResponseStore, StoreLimits
from baichuan2_tpu.server.api.routes import answer_routes, model_routes
from baichuan2_tpu.server.callers import CallerThreads
from baichuan2_tpu.server.errors import add_handlers
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.server.tenants import ShareRule
from baichuan2_tpu.server.transport.guards import BodyLimit, KeyGuard
from baichuan2_tpu.server.transport.paths import TidyPath
from baichuan2_tpu.server.transport.routes_operations import operation_routes

__all__ = ["ServerOptions", "create_app"]

_KEY = re.compile("[!-~]*")
_MORE_REQUESTS = 64
"""How many requests may be read or refused beside those that run or wait."""
_THREADS = 80
"""Requests that are prepared at once, of which about half may wait for their schemas to be compiled."""
_ORIGIN = re.compile(r"\*|https?://[^/?#\s]+")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Who may use the server, and how large a request may be.

    Without ``api_keys`` anybody may use it. ``cors_origins`` are the web sites whose pages may, as browsers
    name them: ``https://site.example``, or ``*`` for all. ``allowed_hosts`` are names that lead here
    besides the machine's own, as that of a proxy in front; ``*`` for all. ``share_prefixes`` tells who
    shares kept beginnings of prompts: the holders of one key, or all. ``stored_responses`` and
    ``stored_bytes`` bound what is kept of ``/v1/responses``; 0 responses keeps none.

    Raises: RequestError naming the value and the range that is allowed.
    """

    api_keys: frozenset[str] = frozenset()
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 4 * 2**20  # a context of 32k tokens is about 0.2 MB of text
    share_prefixes: ShareRule = "key"
    stored_responses: int = 1000
    stored_bytes: int = 64 * 2**20

    def __post_init__(self) -> None:
        if "" in self.api_keys:
            raise RequestError("an API key is empty; give at least one character")
        if not all(_KEY.fullmatch(key) for key in self.api_keys):
            raise RequestError(
                "an API key contains a space or a non-ASCII character, which an HTTP header cannot carry; "
                "use ASCII letters, digits and punctuation"
            )
        wrong = next((origin for origin in self.cors_origins if not _ORIGIN.fullmatch(origin)), None)
        if wrong is not None:
            raise RequestError(
                f"{wrong!r} is not a web origin; write it as browsers do: https://site.example, "
                "with the port if it is not the default one, and without a path"
            )
        if self.max_body_bytes < 1:
            raise RequestError(f"max_body_bytes is {self.max_body_bytes}; 1 or more is allowed")
        if self.stored_responses < 0 or self.stored_bytes < 0:
            raise RequestError(
                f"stored_responses is {self.stored_responses}, stored_bytes {self.stored_bytes}; "
                "0 or more is allowed"
            )


def create_app(service: Service, options: ServerOptions | None = None) -> FastAPI:
    """Return the app that serves a model; the caller starts and stops its scheduler."""
    options = options or ServerOptions()
    app = FastAPI(
        title="baichuan2-tpu",
        summary="Baichuan2 and other models of the Llama family behind OpenAI's API.",
        version=__version__,
        # FastAPI's pages load their scripts from a CDN; the description itself needs no network.
        docs_url=None,
        redoc_url=None,
    )
    # The guard below checks the key; this only documents it in the OpenAPI description.
    keys = [Security(HTTPBearer(auto_error=False))] if options.api_keys else []
    threads = CallerThreads(_THREADS)
    app.include_router(answer_routes(service, threads), dependencies=keys)
    limits = StoreLimits(options.stored_responses, options.stored_bytes, options.max_body_bytes)
    app.include_router(response_routes(service, ResponseStore(limits), threads), dependencies=keys)
    app.include_router(model_routes(service), dependencies=keys)
    app.include_router(operation_routes(service))
    add_handlers(app)
    # The middleware added last sees a request first.
    app.add_middleware(
        BodyLimit, max_bytes=options.max_body_bytes, max_requests=service.max_answers + _MORE_REQUESTS
    )
    if options.api_keys:
        app.add_middleware(KeyGuard, keys=options.api_keys, share=options.share_prefixes)
    if options.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=options.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's client sends a dozen of them
            expose_headers=["Retry-After", "X-Request-Id", "X-Ignored-Fields", "X-Tools-Left-Out"],
        )
    app.add_middleware(TidyPath)
    return app
