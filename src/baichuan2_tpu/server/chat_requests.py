"""From a chat as OpenAI writes it to requests of the scheduler.

Not here: the fields (``schema_chat``), the answer (``chat_answers``).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from baichuan2_tpu.server.chat_grammar import chat_grammar
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.requests import answer_settings, repeated
from baichuan2_tpu.server.scheduler import Request
from baichuan2_tpu.server.schema_chat import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.text.messages import Message

__all__ = ["chat_requests", "chat_tokens"]


def chat_requests(body: ChatRequest, service: Service, client: str) -> list[Request]:
    """Return a request for each answer that is asked for.

    Raises: ApiError, RequestError for what cannot be honoured.
    """
    _refuse_what_is_missing(body)
    settings = answer_settings(
        body,
        service,
        max_tokens=_max_tokens(body),
        logprobs=_logprobs(body),
        grammar=chat_grammar(body, service),
    )
    ids = chat_tokens(body.messages, service)
    return repeated(ids, settings, body, service, body.safety_identifier or client)


def chat_tokens(messages: Sequence[ChatMessage], service: Service) -> tuple[int, ...]:
    """Write a conversation as the model reads it; nothing is left out, however long it is.

    Raises: RequestError when the messages make no conversation.
    """
    return service.model.template.render([_message(message) for message in messages], sys.maxsize).ids


def _message(message: ChatMessage) -> Message:
    match message:
        case SystemMessage():
            return Message("system", _text(message.content))
        case UserMessage():
            return Message("user", _text(message.content))
        case AssistantMessage(tool_calls=None) if message.content is not None:
            return Message("assistant", _text(message.content))
        case AssistantMessage() | ToolMessage():
            raise ApiError(
                "tools are not supported; send messages of text",
                param="messages",
                code="unsupported_parameter",
            )


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


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


def _refuse_what_is_missing(body: ChatRequest) -> None:
    missing = {
        "tools": bool(body.tools),
        "tool_choice": body.tool_choice not in (None, "none", "auto"),
    }
    for name, is_asked in missing.items():
        if is_asked:
            raise ApiError(f"{name} is not supported; leave it out", param=name, code="unsupported_parameter")
