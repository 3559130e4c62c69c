"""``/v1/models``, ``/tokenize``, ``/detokenize``, ``/tokenizer_info``: what needs no engine.

Not here: answers (``routes_answers``).
"""

from __future__ import annotations

from fastapi import APIRouter

from baichuan2_tpu.server.api.chat_input import chat_tokens
from baichuan2_tpu.server.api.schema import (
    Detokenized,
    DetokenizeRequest,
    ModelCard,
    ModelList,
    Tokenized,
    TokenizerInfo,
)
from baichuan2_tpu.server.api.schema_chat import ChatTokenizeRequest
from baichuan2_tpu.server.errors import DOCUMENTED, ApiError
from baichuan2_tpu.server.service import Service

__all__ = ["model_routes"]


def model_routes(service: Service) -> APIRouter:
    """Return the routes that tell about a model. Their handlers run in worker threads: texts can be long."""
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
    return service.model.tokenizer.encode(body.prompt or "")
