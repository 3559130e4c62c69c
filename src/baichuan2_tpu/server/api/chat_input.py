"""From a chat request of OpenAI's API to requests of the scheduler: its prompt and its answer's grammar.

An answer is free text until calls begin; from there on it is JSON that follows the functions' schemas.
Not here: the fields (``schema_chat``), the messages (``conversation``), the answer (``chat_output``), how the
model wants messages written (``text.template``), what the tools are (``tools``), compiling grammars
(``generate.grammar``).
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import cast

from baichuan2_tpu.chat import prompt_budget
from baichuan2_tpu.errors import ContextLengthError, RequestError, TooCostly
from baichuan2_tpu.generate.grammar.constraint import Grammar
from baichuan2_tpu.generate.grammar.grammars import ANY_OBJECT, json_rule
from baichuan2_tpu.server.api.answer_settings import NO_LIMIT, answer_settings, make_requests
from baichuan2_tpu.server.api.conversation import read_messages
from baichuan2_tpu.server.api.schema_chat import (
    ChatMessage,
    ChatRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    Tool,
)
from baichuan2_tpu.server.api.tools import (
    CALL_BEGIN,
    CALL_END,
    add_tools,
    call_begin,
    callable_tools,
    is_call_forced,
    parameters,
)
from baichuan2_tpu.server.callers import current_caller
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.scheduling.ticket import Request
from baichuan2_tpu.server.service import Service

__all__ = ["chat_grammar", "chat_requests", "chat_tokens", "fit_tools"]

_MAX_CALLS = 8  # per answer: a small model can repeat one call for ever
_MAX_PATTERNS = 16  # of a faulty schema that are tried


def chat_requests(
    body: ChatRequest, service: Service, client: str, *, is_trimmed: bool = False
) -> list[Request]:
    """Return a request for each requested answer; ``is_trimmed`` leaves out old rounds that do not fit.

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
    budget = prompt_budget(service.model.max_context, settings.max_tokens) if is_trimmed else None
    ids = chat_tokens(body.messages, service, tools, budget)
    if len(ids) > service.model.max_context:
        raise _too_long(len(ids), body, tools, service)
    return make_requests(ids, settings, body, service, body.safety_identifier or client)


def fit_tools(body: ChatRequest, service: Service) -> ChatRequest:
    """Return a request with the tools that the server's rule leaves: all, none, or the newest that fit.

    Raises: ApiError where a tool must be called and the rule leaves none.
    """
    rule = service.rules.tools
    if rule == "all" or not body.tools:
        return body
    if rule == "off":
        if is_call_forced(body):
            raise ApiError(
                "tools are switched off on this server; leave tool_choice out", param="tool_choice"
            )
        return body.model_copy(update={"tools": None, "tool_choice": None})
    offered = callable_tools(body)
    if len(offered) < len(body.tools):  # one must be called, or none may be
        return body
    max_context = service.model.max_context
    limit = _max_tokens(body)
    budget = prompt_budget(max_context, max_context if limit in (None, NO_LIMIT) else limit)

    def length(count: int) -> int:
        try:
            return len(chat_tokens(body.messages, service, offered[len(offered) - count :]))
        except ContextLengthError:  # too long to be counted
            return sys.maxsize

    count = bisect_right(range(len(offered) + 1), budget, key=length) - 1
    count = max(count, int(is_call_forced(body)))
    return body.model_copy(update={"tools": offered[len(offered) - count :] if count else None})


def _too_long(total: int, body: ChatRequest, tools: Sequence[Tool], service: Service) -> ApiError:
    """Return the error for a prompt that does not fit, which says what takes how much of it."""
    messages = read_messages(body.messages)
    system = messages[0].content if messages[0].role == "system" else ""
    system_tokens = len(service.model.tokenizer.encode(system))
    tool_tokens = total - len(chat_tokens(body.messages, service)) if tools else 0
    return ApiError(
        f"the prompt is {total} tokens, {service.model.max_context} are allowed; {tool_tokens} describe "
        f"{len(tools)} tools, {system_tokens} are system messages and {total - tool_tokens - system_tokens} "
        "the conversation: send less of what is largest, or serve with --tools fit or a larger --context",
        param="messages",
        code="context_length_exceeded",
    )


def chat_tokens(
    messages: Sequence[ChatMessage], service: Service, tools: Sequence[Tool] = (), budget: int | None = None
) -> tuple[int, ...]:
    """Render a conversation as the model reads it; only with a ``budget`` of tokens is anything dropped.

    Raises: RequestError when the order of roles is not allowed; ContextLengthError where it cannot fit.
    """
    conversation = add_tools(read_messages(messages), tools)
    if budget is not None:
        return service.model.template.render(conversation, budget).ids
    service.check_length(message.content for message in conversation)
    return service.model.template.render(conversation, sys.maxsize).ids


def _max_tokens(body: ChatRequest) -> int | None:
    """Return the limit, given by any of its names."""
    limits = {
        name: limit
        for name in ("max_tokens", "max_completion_tokens", "n_predict")
        if (limit := getattr(body, name)) is not None
    }
    if len(set(limits.values())) > 1:
        values = " and ".join(f"{name} is {limit}" for name, limit in limits.items())
        raise ApiError(f"{values}; all name the same limit: give only one", param="max_tokens")
    return next(iter(limits.values()), None)


def _logprobs(body: ChatRequest) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise ApiError("top_logprobs requires logprobs; set logprobs to true", param="top_logprobs")
    return (body.top_logprobs or 0) if body.logprobs else None


def chat_grammar(body: ChatRequest, tools: Sequence[Tool], service: Service) -> Grammar | None:
    """Return the grammar of an answer that may call these tools; None for free text.

    Raises: ApiError naming the part of a schema that is not supported.
    """
    schema = _answer_schema(body)
    if not tools:
        return None if schema is None else _compile(schema, "response_format", "", service)
    try:
        return service.grammars.lark(_call_rules(body, tools, schema), current_caller.get())
    except RequestError as exc:
        # Each alone, to name the one that is to blame.
        if schema is not None:
            _compile(schema, "response_format", "", service)
        for tool in tools:
            _compile(parameters(tool), "tools", f"the parameters of {tool.function.name!r}: ", service)
        raise ApiError(str(exc), param="tools", code="invalid_json_schema") from exc


def _call_rules(body: ChatRequest, tools: Sequence[Tool], schema: Mapping[str, object] | None) -> str:
    """Return the grammar of text or JSON that may be, or be followed by, calls of tools."""
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
    return "\n".join(rules)


def _compile(schema: Mapping[str, object], param: str, what: str, service: Service) -> Grammar:
    try:
        return service.grammars.json_schema(schema, current_caller.get())
    except RequestError as exc:
        # A schema that is too costly is no reason to spend more on it.
        pattern = "" if isinstance(exc, TooCostly) else _faulty_pattern(schema, service)
        reason = pattern or str(exc)
        raise ApiError(f"{what}{reason}", param=param, code="invalid_json_schema") from exc


def _faulty_pattern(schema: Mapping[str, object], service: Service) -> str:
    """Return which pattern of a schema cannot be compiled, and where it is; nothing when all can."""
    for place, pattern in islice(_patterns(schema, ""), _MAX_PATTERNS):
        if not _is_supported(pattern, service):
            return (
                f'the pattern "{pattern}" of {place or "the schema"} is not supported; '
                "write it without look-ahead, look-behind and back-references, or leave it out"
            )
    return ""


def _is_supported(pattern: str, service: Service) -> bool:
    try:
        service.grammars.json_schema({"type": "string", "pattern": pattern}, current_caller.get())
    except RequestError:
        return False
    return True


def _patterns(schema: object, place: str) -> Iterator[tuple[str, str]]:
    """Yield every pattern of a schema and its place."""
    if isinstance(schema, dict):
        for name, value in cast("dict[str, object]", schema).items():
            if name == "pattern" and isinstance(value, str):
                yield place, value
            yield from _patterns(value, f"{place}.{name}" if place else name)
    elif isinstance(schema, list):
        for index, value in enumerate(cast("list[object]", schema)):
            yield from _patterns(value, f"{place}.{index}")


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
        case JsonObjectFormat(schema_=schema):
            return ANY_OBJECT if schema is None else schema
        case JsonSchemaFormat(json_schema=named):
            return ANY_OBJECT if named.schema_ is None else named.schema_
        case _:
            return None
