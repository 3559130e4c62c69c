"""Any error as an OpenAI error object with its HTTP status: the only place where that is decided.

400 a request this model cannot serve, or no JSON; 401 no valid key; 404 no such model or path; 408 too slow;
413 too large; 422 JSON that is no such request; 429 too many requests; 503 out of time, or stopping; 500 the
server's fault.
Not here: which checks there are.
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
    ContextLengthError,
    QueueFull,
    RequestError,
    ServiceError,
)

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

_MAX_FAULTS_TOLD = 3
_INVALID = "invalid_request_error"
_SERVER = "server_error"


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
    """What HTTP or OpenAI's API does not allow; ``param`` is the field that is wrong."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class Fault:
    """What a client is told."""

    status: int
    message: str
    type: str = _INVALID
    param: str | None = None
    code: str | None = None
    retry_after_s: float | None = None

    @property
    def body(self) -> ErrorBody:
        """The error object. What a client sent may come back in it, and need not be Unicode."""
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
"""What the API's description says of errors."""


def describe(error: Exception) -> Fault:
    """Return what to tell a client about an error.

    Side effect: an error nobody expected is logged, and its text kept from the client.
    """
    if isinstance(error, ApiError):
        return Fault(error.status, str(error), param=error.param, code=error.code)
    if isinstance(error, RequestValidationError):
        return _describe_validation(error)
    if isinstance(error, StarletteHTTPException):
        return Fault(error.status_code, str(error.detail), code=_code(error.status_code))
    if isinstance(error, Baichuan2Error):
        return _describe_own(error)
    _log.error("a request failed", exc_info=error)
    return Fault(500, "the server failed; its log says why", _SERVER, code="internal_error")


def error_response(error: Exception) -> Response:
    """Return the response that tells a client about an error."""
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
    """Let every error of an app become an error object."""

    def handle(_request: Request, error: Exception) -> Response:
        return error_response(error)

    for kind in (Baichuan2Error, RequestValidationError, StarletteHTTPException, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


def _describe_own(error: Baichuan2Error) -> Fault:
    """Describe an error of this package, whose text is written to be read by users."""
    message = str(error)
    if isinstance(error, ContextLengthError):
        return Fault(400, message, param="messages", code="context_length_exceeded")
    if isinstance(error, RequestError):
        return Fault(400, message)
    if isinstance(error, QueueFull):
        return Fault(429, message, "rate_limit_error", code="queue_full", retry_after_s=error.retry_after_s)
    if isinstance(error, (ServiceError, BackendUnavailable)):
        return Fault(503, message, _SERVER, code="unavailable")
    _log.error("a request failed: %s", message)
    return Fault(500, message, _SERVER, code="engine_failed")


def _describe_validation(error: RequestValidationError) -> Fault:
    """Name the fields that are wrong."""
    faults = cast("Sequence[Mapping[str, object]]", error.errors())
    first = faults[0]
    if first["type"] == "json_invalid":
        return Fault(400, f"the body is not JSON: {first.get('ctx')}", code="invalid_json")
    if first["type"] == "model_attributes_type" and not _place(first):
        message = "the body is no JSON object; send one, with the header Content-Type: application/json"
        return Fault(422, message, code="invalid_value")
    told = [f"{'.'.join(_place(fault)) or 'the body'}: {fault['msg']}" for fault in faults[:_MAX_FAULTS_TOLD]]
    code = "unknown_parameter" if first["type"] == "extra_forbidden" else "invalid_value"
    return Fault(422, "; ".join(told), param=next(iter(_place(first)), None), code=code)


def _place(fault: Mapping[str, object]) -> list[str]:
    """Return the field that is wrong and the way to it, pydantic's names of types included."""
    where = cast("Sequence[str | int]", fault["loc"])
    return [str(part) for part in where[1:]]  # the first is "body"


def _code(status: int) -> str:
    return HTTPStatus(status).phrase.lower().replace(" ", "_")
