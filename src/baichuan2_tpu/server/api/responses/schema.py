"""The fields of ``/v1/responses``, and the items that an input consists of.

Clients send the items of an answer back with all their fields: those that nothing follows from are declared
and not read. Not here: what they mean (``input``), fields that are not declared (``fields``), answers
(``objects``).
Source: OpenAI's API reference, "Create a model response"; the types of openai-python 3.57.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

from pydantic import BeforeValidator, Field, JsonValue, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from baichuan2_tpu.server.api.schema import Many, Names, OpenInput, SamplingInput, Whole
from baichuan2_tpu.server.api.schema_chat import (
    ChatLimit,
    Content,
    Function,
    FunctionCall,
    FunctionName,
    JsonObjectFormat,
    NamedSchema,
    TextFormat,
)

__all__ = [
    "ITEMS",
    "AllowedTools",
    "FormatSchema",
    "FunctionCallItem",
    "FunctionOutputItem",
    "FunctionTool",
    "InputItem",
    "ItemReference",
    "MessageItem",
    "NamedFunction",
    "ReasoningItem",
    "ResponseRequest",
]

_MAX_TYPE = 40  # characters of an unknown type that are quoted
_MAX_METADATA = 16  # OpenAI's limits
_MAX_METADATA_NAME = 64
_MAX_METADATA_TEXT = 512
_MAX_INCLUDES = 32


class MessageItem(OpenInput):
    """What one side said; ``id`` and ``status`` are those of a stored or copied message."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Content | None = None
    id: str | None = None
    status: str | None = None


class FunctionCallItem(FunctionCall):
    """A call of a function by the model; ``call_id`` connects it with its output."""

    type: Literal["function_call"]
    call_id: str
    id: str | None = None
    status: str | None = None


class FunctionOutputItem(OpenInput):
    """What a function returned."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content
    id: str | None = None
    status: str | None = None


class ReasoningItem(OpenInput):
    """Thoughts of another model; they are dropped."""

    type: Literal["reasoning"]
    id: str | None = None
    status: str | None = None
    summary: JsonValue = None
    content: JsonValue = None
    encrypted_content: str | None = None


class ItemReference(OpenInput):
    """An item of a stored response, by its id."""

    type: Literal["item_reference"]
    id: str


def _read_type(value: object) -> object:
    """Return an item with its type, which messages and references may leave out."""
    if not isinstance(value, dict):
        return value  # pyright: ignore[reportUnknownVariableType] - told as what it is
    fields = cast("dict[str, object]", value)
    if fields.get("type") is not None:
        return fields
    implied = "message" if "role" in fields else "item_reference" if "id" in fields else None
    return {**fields, "type": implied} if implied else fields


InputItem = Annotated[
    Annotated[
        MessageItem | FunctionCallItem | FunctionOutputItem | ReasoningItem | ItemReference,
        Field(discriminator="type"),
    ],
    BeforeValidator(_read_type),
]

ITEMS: TypeAdapter[list[InputItem]] = TypeAdapter(Many[InputItem])
"""Reads stored items again."""


def _check_function(value: object) -> object:
    """Return what may be a function. Raises: PydanticCustomError for a tool of another type."""
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, object]", value)
    kind = fields.get("type")
    if isinstance(kind, str) and kind not in ("function", "allowed_tools"):
        raise PydanticCustomError(
            "functions_only",
            "is of the type {type}; this server searches and runs nothing: functions, which the client runs, "
            "are allowed",
            {"type": repr(kind[:_MAX_TYPE])},
        )
    return fields


class FunctionTool(Function):
    """A function the model may call."""

    type: Literal["function"]


class NamedFunction(FunctionName):
    """The function that the answer must call."""

    type: Literal["function"]


class AllowedTools(OpenInput):
    """The functions that the answer may call, or one of which it must."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[Many[Annotated[NamedFunction, BeforeValidator(_check_function)]], Field(max_length=128)]


class FormatSchema(NamedSchema):
    """JSON that follows a schema."""

    type: Literal["json_schema"]

    @model_validator(mode="before")
    @classmethod
    def _read_bare(cls, value: object) -> object:
        """Return the value as it is: its own type stands beside the schema."""
        return value


class TextSettings(OpenInput):
    """What the text of an answer has to be."""

    format: Annotated[TextFormat | JsonObjectFormat | FormatSchema | None, Field(discriminator="type")] = None


Metadata = Annotated[
    dict[
        Annotated[str, Field(max_length=_MAX_METADATA_NAME)],
        Annotated[str, Field(max_length=_MAX_METADATA_TEXT)],
    ],
    Field(max_length=_MAX_METADATA),
    Names,
]


class ResponseRequest(SamplingInput):
    """An input to answer, with what was said before: in ``input``, or in a stored response."""

    input: str | Many[InputItem]
    instructions: str | None = Field(None, description="A system message in front; it is not stored.")
    previous_response_id: str | None = Field(None, description="Of a stored response of the same key.")
    store: bool | None = Field(None, description="True where it is left out, within ``--stored-responses``.")
    max_output_tokens: ChatLimit | None = None
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="``auto`` leaves out the oldest rounds that do not fit."
    )
    text: TextSettings | None = None
    tools: Many[Annotated[FunctionTool, BeforeValidator(_check_function)]] | None = Field(
        None, max_length=128, description="Functions only."
    )
    tool_choice: Annotated[
        Literal["none", "auto", "required"]
        | Annotated[NamedFunction | AllowedTools, Field(discriminator="type")]
        | None,
        BeforeValidator(_check_function),
    ] = None
    parallel_tool_calls: bool | None = None
    include: Annotated[Many[str], Field(max_length=_MAX_INCLUDES)] | None = Field(
        None, description="``message.output_text.logprobs``; nothing else can be included."
    )
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    metadata: Metadata | None = None
    safety_identifier: str | None = Field(None, description="Same as ``user``.")
    n: Whole | None = Field(None, ge=1, le=1)
