"""The grammar that an answer of a chat must follow, from what the client asks for.

Text is free until calls begin; from there on they are JSON that the functions' schemas allow.
Not here: compiling grammars and enforcing them (``generate.grammars``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.constraint import Grammar
from baichuan2_tpu.generate.grammars import json_rule
from baichuan2_tpu.server.api.schema_chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat, Tool
from baichuan2_tpu.server.api.tools import CALL_BEGIN, CALL_END, call_begin, is_call_forced, parameters
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.service import Service

__all__ = ["chat_grammar"]

_MAX_CALLS = 8  # in one answer: a small model can make the same call over and over

_ANY_OBJECT: Mapping[str, object] = {"type": "object"}


def chat_grammar(body: ChatRequest, tools: Sequence[Tool], service: Service) -> Grammar | None:
    """Return what an answer that may call these tools must follow; None when it is free.

    Raises: ApiError naming what of a schema is not supported.
    """
    schema = _answer_schema(body)
    grammar = None if schema is None else _checked(schema, "response_format", "", service)
    if not tools:
        return grammar
    for tool in tools:
        _checked(parameters(tool), "tools", f"the parameters of {tool.function.name!r}: ", service)
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


def _checked(schema: Mapping[str, object], param: str, what: str, service: Service) -> Grammar:
    try:
        return service.grammars.json_schema(schema)
    except RequestError as exc:
        raise ApiError(f"{what}{exc}", param=param, code="invalid_json_schema") from exc


def _start(body: ChatRequest, schema: Mapping[str, object] | None) -> list[str]:
    """Return the rules of what an answer is besides calls, if it may be anything else."""
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
