"""``/v1/chat/completions`` and ``/v1/completions``.

A handler checks and translates in a worker thread, since texts can be long, and then only passes events on.
Not here: what fields mean (``chat_requests``, ``completion_requests``).
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from baichuan2_tpu.errors import ContextLengthError
from baichuan2_tpu.server.api.chat_input import chat_requests
from baichuan2_tpu.server.api.chat_output import ChatWriter
from baichuan2_tpu.server.api.completion import completion_requests
from baichuan2_tpu.server.api.event_stream import send_answers
from baichuan2_tpu.server.api.schema_chat import ChatAnswer, ChatRequest
from baichuan2_tpu.server.api.schema_completion import CompletionAnswer, CompletionRequest
from baichuan2_tpu.server.completion_answers import CompletionWriter
from baichuan2_tpu.server.errors import DOCUMENTED, ApiError
from baichuan2_tpu.server.scheduling.answers import Answers
from baichuan2_tpu.server.service import Service

__all__ = ["answer_routes"]

_STREAM = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


def answer_routes(service: Service) -> APIRouter:
    """Return the routes on which a model answers."""
    router = APIRouter(prefix="/v1", responses=DOCUMENTED, tags=["answers"])

    @router.post("/chat/completions", response_model=ChatAnswer, responses={200: _STREAM})
    async def complete_chat(body: ChatRequest, request: Request) -> Response:
        """Go on with a conversation."""
        answers = await run_in_threadpool(_ask_chat, body, service, _client(request))
        return await send_answers(request, answers, ChatWriter(body, service), is_stream=bool(body.stream))

    @router.post("/completions", response_model=CompletionAnswer, responses={200: _STREAM})
    async def complete(body: CompletionRequest, request: Request) -> Response:
        """Go on with a text, or with tokens, as they are."""
        writer, answers = await run_in_threadpool(_ask_completion, body, service, _client(request))
        return await send_answers(request, answers, writer, is_stream=bool(body.stream))

    return router


def _ask_chat(body: ChatRequest, service: Service, client: str) -> Answers:
    service.check_model(body.model)
    return service.submit(chat_requests(body, service, client))


def _ask_completion(
    body: CompletionRequest, service: Service, client: str
) -> tuple[CompletionWriter, Answers]:
    service.check_model(body.model)
    requests = completion_requests(body, service, client)
    try:
        return CompletionWriter(body, service, requests), service.submit(requests)
    except ContextLengthError as error:
        raise ApiError(str(error), param="prompt", code="context_length_exceeded") from error


def _client(request: Request) -> str:
    return request.client.host if request.client else ""
