"""From a chat request of OpenAI's API to requests of the scheduler: its messages and its answer's grammar.

An answer is free text until calls begin; from there on it is JSON that follows the functions' schemas.
Not here: the fields (``schema_chat``), the answer (``chat_output``), how the model wants messages written
(``text.template``), what the tools are (``tools``), compiling grammars (``generate.grammars``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.constraint import Grammar
from baichuan2_tpu.generate.grammars import json_rule
from baichuan2_tpu.server.api.answer_settings import answer_settings, make_requests
from baichuan2_tpu.server.api.schema_chat import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    SystemMessage,
    TextPart,
    Tool,
    ToolMessage,
    UserMessage,
)
from baichuan2_tpu.server.api.tools import (
    CALL_BEGIN,
    CALL_END,
    add_tools,
    call_begin,
    callable_tools,
    is_call_forced,
    parameters,
    write_calls,
    write_result,
)
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.scheduling.ticket import Request
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.text.messages import Message

__all__ = ["chat_grammar", "chat_messages", "chat_requests", "chat_tokens"]

_MAX_CALLS = 8  # per answer: a small model can repeat one call for ever
_ANY_OBJECT: Mapping[str, object] = {"type": "object"}


def chat_requests(body: ChatRequest, service: Service, client: str) -> list[Request]:
    """Return a request for each requested answer.

    Raises: ApiError, RequestError for what is not supported.
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
    return make_requests(ids, settings, body, service, body.safety_identifier or client)


def chat_tokens(
    messages: Sequence[ChatMessage], service: Service, tools: Sequence[Tool] = ()
) -> tuple[int, ...]:
    """Render a conversation as the model reads it; nothing is dropped, however long it is.

    Raises: RequestError when the order of roles is not allowed.
    """
    rendered = service.model.template.render(add_tools(chat_messages(messages), tools), sys.maxsize)
    return rendered.ids


def _max_tokens(body: ChatRequest) -> int | None:
    """Return the limit, given by its old name, its new one, or both."""
    both = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(both) > 1:
        raise ApiError(
            f"max_tokens is {body.max_tokens} and max_completion_tokens {body.max_completion_tokens}; "
            "both name the same limit: give only one",
            param="max_tokens",
        )
    return both.pop() if both else None


def _logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError("top_logprobs requires logprobs; set logprobs to true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def chat_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the messages; tool calls become assistant text, and tool results user text.

    Raises: ApiError for an empty answer, or the result of a call that was not made.
    """
    read: list[Message] = []
    name_of_call: dict[str, str] = {}
    is_result = False
    for message in messages:
        match message:
            case SystemMessage():
                read.append(Message("system", _text(message.content)))
            case UserMessage():
                name_of_call = {}
                read.append(Message("user", _text(message.content)))
            case AssistantMessage():
                name_of_call = {call.id: call.function.name for call in message.tool_calls or ()}
                read.append(Message("assistant", _answer(message)))
            case ToolMessage():
                result = _result(message, name_of_call)
                # The results of one answer's calls are one message.
                before = f"{read.pop().content}\n" if is_result else ""
                read.append(Message("user", before + result))
        is_result = isinstance(message, ToolMessage)
    return read


def _answer(message: AssistantMessage) -> str:
    if message.content is None and not message.tool_calls:
        raise ApiError("an assistant message has neither content nor tool_calls; give one", param="messages")
    calls = write_calls(message.tool_calls) if message.tool_calls else ""
    return _text(message.content or "") + calls


def _result(message: ToolMessage, name_of_call: dict[str, str]) -> str:
    name = name_of_call.get(message.tool_call_id)
    if name is None:
        raise ApiError(
            f"the tool_call_id {message.tool_call_id!r} is of no call in the assistant message before it; "
            "put the assistant message with its tool_calls before the results",
            param="messages",
        )
    return write_result(name, _text(message.content))


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def chat_grammar(body: ChatRequest, tools: Sequence[Tool], service: Service) -> Grammar | None:
    """Return the grammar of an answer that may call these tools; None for free text.

    Raises: ApiError naming the part of a schema that is not supported.
    """
    schema = _answer_schema(body)
    grammar = None if schema is None else _compile(schema, "response_format", "", service)
    if not tools:
        return grammar
    for tool in tools:
        _compile(parameters(tool), "tools", f"the parameters of {tool.function.name!r}: ", service)
    more = "" if body.parallel_tool_calls is False else f' (", " call){{0,{_MAX_CALLS - 1}}}'
    rules = [
        *_start(body, schema),
        f"calls: call{more} {json.dumps(CALL_END)}",
        "call: " + " | ".join(f"call_{index}" for index in range(len(tools))),
    ]
    for index, tool in enumerate(tools):
        begin = json.dumps(call_begin(tool.function.name))
        rules.append(f'call_{index}: {begin} arguments_{index} "}}"')
        rules.append(f"arguments_{index}: {json_rule(parameters(tool))}")
    return service.grammars.lark("\n".join(rules))


def _compile(schema: Mapping[str, object], param: str, what: str, service: Service) -> Grammar:
    try:
        return service.grammars.json_schema(schema)
    except RequestError as exc:
        raise ApiError(f"{what}{exc}", param=param, code="invalid_json_schema") from exc


def _start(body: ChatRequest, schema: Mapping[str, object] | None) -> list[str]:
    """Return the rules for the start of an answer: calls, or text or JSON if they are allowed."""
    begin = json.dumps(CALL_BEGIN)
    if is_call_forced(body):
        return [f"start: {begin} calls"]
    if schema is not None:
        return [f"start: {begin} calls | answer", f"answer: {json_rule(schema)}"]
    return ["start: calling calls | TEXT", f"calling[lazy]: TEXT {begin}", r"TEXT: /(.|\n)*/"]


def _answer_schema(body: ChatRequest) -> Mapping[str, object] | None:
    """Return the schema of a JSON answer; None for text."""
    match body.response_format:
        case JsonObjectFormat():
            return _ANY_OBJECT
        case JsonSchemaFormat(json_schema=named):
            return _ANY_OBJECT if named.schema_ is None else named.schema_
        case _:
            return None
