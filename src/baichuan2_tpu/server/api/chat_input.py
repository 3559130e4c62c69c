"""From a chat as OpenAI writes it to requests of the scheduler.

Not here: the fields (``schema_chat``), the answer (``chat_answers``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from baichuan2_tpu.server.api.answer_settings import answer_settings, repeated
from baichuan2_tpu.server.api.schema_chat import ChatMessage, ChatRequest, Tool
from baichuan2_tpu.server.api.tools import callable_tools, with_tools
from baichuan2_tpu.server.chat_grammar import chat_grammar
from baichuan2_tpu.server.chat_messages import chat_messages
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.scheduling.scheduler import Request
from baichuan2_tpu.server.service import Service

__all__ = ["chat_requests", "chat_tokens"]


def chat_requests(body: ChatRequest, service: Service, client: str) -> list[Request]:
    """Return a request for each answer that is asked for.

    Raises: ApiError, RequestError for what cannot be honoured.
    """
    tools = callable_tools(body)
    settings = answer_settings(
        body,
        service,
        max_tokens=_max_tokens(body),
        logprobs=_logprobs(body),
        grammar=chat_grammar(body, tools, service),
    )
    ids = chat_tokens(body.messages, service, tools)
    return repeated(ids, settings, body, service, body.safety_identifier or client)


def chat_tokens(
    messages: Sequence[ChatMessage], service: Service, tools: Sequence[Tool] = ()
) -> tuple[int, ...]:
    """Write a conversation as the model reads it; nothing is left out, however long it is.

    Raises: RequestError when the messages make no conversation.
    """
    told = with_tools(chat_messages(messages), tools)
    return service.model.template.render(told, sys.maxsize).ids


def _max_tokens(body: ChatRequest) -> int | None:
    """Return the limit that is meant by the old name, the new one, or both."""
    both = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(both) > 1:
        raise ApiError(
            f"max_tokens is {body.max_tokens}, max_completion_tokens {body.max_completion_tokens}; "
            "they are two names for one limit: give one",
            param="max_tokens",
        )
    return both.pop() if both else None


def _logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs need logprobs; set logprobs to true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None
