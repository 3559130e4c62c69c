"""Errors as OpenAI error objects with their HTTP status: the only place where that is decided.

400 a request this model cannot serve, or not JSON; 401 no valid key; 404 no such model or path; 408 too slow;
413 too large; 422 JSON with a wrong field; 429 too many requests; 499 the client left (nginx's, only the log
shows it); 503 timed out, or shutting down; 500 the server's fault.
Source: OpenAI's guide to error codes, and what its Python client raises for each status.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from baichuan2_tpu.errors import (
    BackendUnavailable,
    Baichuan2Error,
    CallerLeft,
    ContextLengthError,
    QueueFull,
    RequestError,
    ServiceError,
)
from baichuan2_tpu.server.known_paths import explain_path
from baichuan2_tpu.server.request_faults import explain_faults

__all__ = [
    "DOCUMENTED",
    "ApiError",
    "ErrorBody",
    "ErrorObject",
    "Fault",
    "Output",
    "add_handlers",
    "describe",
    "error_response",
]

_log = logging.getLogger(__name__)

_INVALID = "invalid_request_error"
_SERVER = "server_error"
_UNREADABLE = "There was an error parsing the body"
"""FastAPI's words for what is no JSON in a way that it does not expect."""
_WHY_UNREADABLE = (
    "the body cannot be read as JSON: it is not UTF-8, nested too deeply, or has a number of too many digits"
)


class Output(BaseModel):
    """Part of a response."""

    model_config = ConfigDict(frozen=True)


class ErrorObject(Output):
    """What was wrong: ``param`` names the field, ``code`` the kind of error."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(Output):
    """The body of every response that reports an error."""

    error: ErrorObject


class ApiError(RequestError):
    """A request that HTTP or OpenAI's API does not allow; ``param`` is the wrong field."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Fault:
    """What a client is told about an error."""

    status: int
    message: str
    type: str = _INVALID
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    @property
    def body(self) -> ErrorBody:
        """The error object. It may quote what a client sent, which need not be valid Unicode."""
        message, param = (
            text and text.encode("utf-8", "backslashreplace").decode() for text in (self.message, self.param)
        )
        return ErrorBody(
            error=ErrorObject(message=message or "", type=self.type, param=param, code=self.code)
        )


DOCUMENTED: dict[int | str, dict[str, object]] = {
    status: {"model": ErrorBody, "description": HTTPStatus(status).phrase}
    for status in (400, 401, 404, 408, 413, 422, 429, 500, 503)
}
"""The errors in the API's OpenAPI description."""


def describe(error: Exception) -> Fault:
    """Return what to tell a client about an error.

    Side effect: an unexpected error is logged, and its text is not shown to the client.
    """
    if isinstance(error, ApiError):
        return Fault(error.status, str(error), param=error.param, code=error.code)
    if isinstance(error, RequestValidationError):
        return _describe_validation(error)
    if isinstance(error, StarletteHTTPException):
        if error.detail == _UNREADABLE:
            return Fault(400, _WHY_UNREADABLE, code="invalid_json")
        return Fault(error.status_code, str(error.detail), code=_code(error.status_code))
    if isinstance(error, Baichuan2Error):
        return _describe_own(error)
    _log.error("a request failed", exc_info=error)
    return Fault(500, "the server failed; see its log", _SERVER, code="internal_error")


def error_response(error: Exception) -> Response:
    """Return the HTTP response for an error."""
    fault = describe(error)
    headers: dict[str, str] = {}
    if fault.retry_after_s is not None:
        headers["Retry-After"] = f"{fault.retry_after_s:.0f}"
    if fault.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, StarletteHTTPException):
        headers.update(error.headers or {})
    return Response(fault.body.model_dump_json(), fault.status, headers, media_type="application/json")


def add_handlers(app: FastAPI) -> None:
    """Answer every error of an app with an error object."""

    def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, StarletteHTTPException) and error.status_code in (404, 405):
            path, method = request.url.path, request.method
            error.detail = explain_path(path, method, error.status_code)
        return error_response(error)

    for kind in (Baichuan2Error, RequestValidationError, StarletteHTTPException, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


def _describe_own(error: Baichuan2Error) -> Fault:
    """Describe an error of this package; its text is written for users."""
    message = str(error)
    if isinstance(error, ContextLengthError):
        return Fault(400, message, param="messages", code="context_length_exceeded")
    if isinstance(error, RequestError):
        return Fault(400, message)
    if isinstance(error, QueueFull):
        return Fault(429, message, "rate_limit_error", code="queue_full", retry_after_s=error.retry_after_s)
    if isinstance(error, CallerLeft):
        return Fault(499, message, code="client_left")
    if isinstance(error, (ServiceError, BackendUnavailable)):
        return Fault(503, message, _SERVER, code="unavailable")
    _log.error("a request failed: %s", message)
    return Fault(500, message, _SERVER, code="engine_failed")


def _describe_validation(error: RequestValidationError) -> Fault:
    """Name the fields that are wrong."""
    faults = cast("Sequence[Mapping[str, object]]", error.errors())
    first = faults[0]
    if first["type"] == "json_invalid":
        return _describe_json(first)
    where, *inside = cast("Sequence[str | int]", first["loc"])
    if where != "body":  # in the query
        name = str(inside[0])
        message, _ = explain_faults([{**first, "loc": (name,)}], {name: first.get("input")})
        return Fault(422, message, param=name, code="invalid_value")
    body = cast("object", error.body)
    if not isinstance(body, dict):
        message = "the body is not a JSON object; send one, with the header Content-Type: application/json"
        return Fault(422, message, code="invalid_value")
    below = [{**fault, "loc": cast("Sequence[str | int]", fault["loc"])[1:]} for fault in faults]
    message, place = explain_faults(below, cast("object", body))
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return Fault(422, message, param=str(place[0]) if place else None, code=code)


def _describe_json(fault: Mapping[str, object]) -> Fault:
    reason = cast("Mapping[str, object]", fault.get("ctx") or {}).get("error")
    place = cast("Sequence[str | int]", fault["loc"])[-1]
    return Fault(400, f"the body is not JSON: {reason} at character {place}", code="invalid_json")


def _code(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "_")
