"""``/v1/chat/completions``, ``/v1/completions``, ``/v1/models`` and vLLM's routes for the tokenizer.

A handler checks and translates in a worker thread, since texts can be long; then it only forwards events.
Not here: what fields mean (``chat_input``, ``completion``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import APIRouter, Request
from starlette.responses import Response

from baichuan2_tpu.errors import ContextLengthError
from baichuan2_tpu.server.api.chat_input import chat_requests, chat_tokens, fit_tools
from baichuan2_tpu.server.api.chat_output import ChatWriter
from baichuan2_tpu.server.api.completion import CompletionWriter, completion_requests
from baichuan2_tpu.server.api.event_stream import KeepAlive, send_answers
from baichuan2_tpu.server.api.fields import IgnoredFields
from baichuan2_tpu.server.api.headers import ignored_header, left_out_header
from baichuan2_tpu.server.api.output import Writer
from baichuan2_tpu.server.api.schema import (
    Detokenized,
    DetokenizeRequest,
    ModelCard,
    ModelList,
    Tokenized,
    TokenizerInfo,
)
from baichuan2_tpu.server.api.schema_chat import ChatAnswer, ChatRequest, ChatTokenizeRequest
from baichuan2_tpu.server.api.schema_completion import CompletionAnswer, CompletionRequest
from baichuan2_tpu.server.callers import CallerThreads
from baichuan2_tpu.server.errors import DOCUMENTED, ApiError
from baichuan2_tpu.server.scheduling.answers import Answers
from baichuan2_tpu.server.service import Service

__all__ = ["answer_routes", "model_routes"]

_STREAM = {"content": {"text/event-stream": {"schema": {"type": "string"}}}}


def answer_routes(service: Service, threads: CallerThreads) -> APIRouter:
    """Return the routes for answers, which are prepared in threads."""
    router = APIRouter(prefix="/v1", responses=DOCUMENTED, tags=["answers"])
    fields = IgnoredFields(is_strict=service.rules.is_strict)

    @router.post("/chat/completions", response_model=ChatAnswer, responses={200: _STREAM})
    async def complete_chat(body: ChatRequest, request: Request, is_kept_alive: KeepAlive) -> Response:
        """Continue a conversation."""
        asked = await threads.run(request, _ask_chat, body, service, fields, _client(request))
        return await _send(request, asked, is_stream=bool(body.stream), is_kept_alive=is_kept_alive)

    @router.post("/completions", response_model=CompletionAnswer, responses={200: _STREAM})
    async def complete(body: CompletionRequest, request: Request, is_kept_alive: KeepAlive) -> Response:
        """Continue a text or tokens as they are."""
        asked = await threads.run(request, _ask_completion, body, service, fields, _client(request))
        return await _send(request, asked, is_stream=bool(body.stream), is_kept_alive=is_kept_alive)

    return router


@dataclass(frozen=True, slots=True)
class _Asked:
    """Answers on their way, who writes them, and the headers that say what was left out."""

    answers: Answers
    writer: Writer
    headers: Mapping[str, str]


async def _send(request: Request, asked: _Asked, *, is_stream: bool, is_kept_alive: bool) -> Response:
    response = await send_answers(
        request, asked.answers, asked.writer, is_stream=is_stream, is_kept_alive=is_kept_alive
    )
    response.headers.update(asked.headers)
    return response


def _ask_chat(body: ChatRequest, service: Service, fields: IgnoredFields, client: str) -> _Asked:
    service.check_model(body.model)
    headers = ignored_header(fields.check(body))
    fitted = fit_tools(body, service)
    answers = service.submit(chat_requests(fitted, service, client))
    return _Asked(answers, ChatWriter(fitted, service), {**headers, **left_out_header(body, fitted)})


def _ask_completion(body: CompletionRequest, service: Service, fields: IgnoredFields, client: str) -> _Asked:
    service.check_model(body.model)
    headers = ignored_header(fields.check(body))
    requests = completion_requests(body, service, client)
    try:
        writer = CompletionWriter(body, service, requests)
        return _Asked(service.submit(requests), writer, headers)
    except ContextLengthError as error:
        raise ApiError(str(error), param="prompt", code="context_length_exceeded") from error


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


def model_routes(service: Service) -> APIRouter:
    """Return the routes that describe a model. Handlers run in worker threads: texts can be long."""
    router = APIRouter(responses=DOCUMENTED, tags=["model"])

    @router.get("/v1/models")
    def list_models() -> ModelList:
        """List the models that are served."""
        return ModelList(data=[_card(service)])

    @router.get("/v1/models/{name:path}")
    def show_model(name: str) -> ModelCard:
        """Describe one model."""
        service.check_model(name)
        return _card(service)

    @router.post("/tokenize")
    def tokenize(body: ChatTokenizeRequest) -> Tokenized:
        """Turn a text, or a conversation as the model reads it, into tokens."""
        service.check_model(body.model)
        tokens = _tokens(body, service)
        return Tokenized(tokens=tokens, count=len(tokens), max_model_len=service.model.max_context)

    @router.get("/tokenizer_info")
    def show_tokenizer() -> TokenizerInfo:
        """Describe the tokenizer."""
        tokenizer = service.model.tokenizer
        return TokenizerInfo(tokenizer_class=type(tokenizer).__name__, vocab_size=tokenizer.vocabulary_size)

    @router.post("/detokenize")
    def detokenize(body: DetokenizeRequest) -> Detokenized:
        """Turn tokens into text."""
        service.check_model(body.model)
        return Detokenized(prompt=service.model.tokenizer.decode(body.tokens))

    return router


def _card(service: Service) -> ModelCard:
    model = service.model
    return ModelCard(id=model.name, created=model.created_s, max_model_len=model.max_context)


def _tokens(body: ChatTokenizeRequest, service: Service) -> list[int]:
    if (body.prompt is None) == (body.messages is None):
        raise ApiError("give either prompt or messages", param="prompt")
    if body.messages is not None:
        return list(chat_tokens(body.messages, service))
    service.check_length([body.prompt or ""])
    return service.model.tokenizer.encode(body.prompt or "")
