"""The grammar that an answer of a chat must follow, from what the client asks for.

Not here: compiling grammars and enforcing them (``generate.grammars``).
"""

from __future__ import annotations

from collections.abc import Mapping

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.constraint import Grammar
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.schema_chat import ChatRequest, JsonObjectFormat, JsonSchemaFormat
from baichuan2_tpu.server.service import Service

__all__ = ["chat_grammar"]

_ANY_OBJECT: Mapping[str, object] = {"type": "object"}


def chat_grammar(body: ChatRequest, service: Service) -> Grammar | None:
    """Return what an answer must follow; None when it is free.

    Raises: ApiError naming what of a schema is not supported.
    """
    schema = _answer_schema(body)
    if schema is None:
        return None
    try:
        return service.grammars.json_schema(schema)
    except RequestError as exc:
        raise ApiError(str(exc), param="response_format", code="invalid_json_schema") from exc


def _answer_schema(body: ChatRequest) -> Mapping[str, object] | None:
    """Return the schema of a JSON answer; None for text."""
    match body.response_format:
        case JsonObjectFormat():
            return _ANY_OBJECT
        case JsonSchemaFormat(json_schema=named):
            return _ANY_OBJECT if named.schema_ is None else named.schema_
        case _:
            return None
