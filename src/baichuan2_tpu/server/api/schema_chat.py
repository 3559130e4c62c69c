"""The fields of ``/v1/chat/completions``.

Clients send a conversation back with more fields than they got, and with empty messages: all of that is read.
Not here: what fields mean for generation (``chat_input``), fields that are not declared (``fields``).
Source: OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

import json
from typing import Annotated, Literal, cast

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from baichuan2_tpu.server.api.schema import Input, Limit, Many, OpenInput, SamplingInput, Usage, Whole
from baichuan2_tpu.server.errors import Output

__all__ = [
    "AssistantMessage",
    "ChatAnswer",
    "ChatChoice",
    "ChatChunk",
    "ChatLogprobs",
    "ChatMessage",
    "ChatRequest",
    "ChatTokenizeRequest",
    "ChunkChoice",
    "Content",
    "Delta",
    "FinishReason",
    "FunctionCall",
    "FunctionDelta",
    "JsonObjectFormat",
    "JsonSchemaFormat",
    "Message",
    "NamedTool",
    "SystemMessage",
    "TextFormat",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolMessage",
    "UserMessage",
]

FinishReason = Literal["stop", "length", "tool_calls"]

_TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_MAX_TYPE = 40  # characters of an unknown type that are quoted


class ContentPart(OpenInput):
    """A piece of text, or of a refusal by another model; pictures and sound are refused."""

    type: str
    text: str = ""
    refusal: str = ""

    @field_validator("type")
    @classmethod
    def _is_text(cls, value: str) -> str:
        if value not in _TEXT_PARTS:
            raise PydanticCustomError(
                "text_only", "is {type}; this model reads text only", {"type": repr(value[:_MAX_TYPE])}
            )
        return value


Content = str | Many[ContentPart]


class SystemMessage(OpenInput):
    """Instructions for the model; several are joined, in front of the conversation."""

    role: Literal["system", "developer"]
    content: Content | None = None
    name: str | None = None


class UserMessage(OpenInput):
    """What a user wrote; ``name`` tells several users apart."""

    role: Literal["user"]
    content: Content | None = None
    name: str | None = None


def _read_arguments(value: object) -> object:
    """Return the arguments of a call as text; Ollama's clients send the object itself."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class FunctionCall(OpenInput):
    """A function's name, and its arguments as JSON text."""

    name: str
    arguments: Annotated[
        str, BeforeValidator(_read_arguments, json_schema_input_type=str | dict[str, object])
    ] = ""


class ToolCall(OpenInput):
    """A call of a function by the model."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(OpenInput):
    """What the model answered; ``name`` tells several assistants apart."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: str | None = None
    name: str | None = None
    tool_calls: Many[ToolCall] | None = None


class ToolMessage(OpenInput):
    """What a function returned; without a known ``tool_call_id`` its ``name`` is needed."""

    role: Literal["tool", "function"]
    content: Content | None = None
    tool_call_id: str | None = None
    name: str | None = None


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class TextFormat(OpenInput):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(OpenInput):
    """A JSON object; llama.cpp's clients give its schema beside the type."""

    type: Literal["json_object"]
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")


class NamedSchema(OpenInput):
    """A JSON schema and its name; Dify's users give the schema itself, without a name."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_bare(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value  # pyright: ignore[reportUnknownVariableType] - told as what it is
        fields = cast("dict[str, object]", value)
        return {"schema": fields} if "schema" not in fields and "type" in fields else fields


class JsonSchemaFormat(OpenInput):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class Function(OpenInput):
    """A function the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(OpenInput):
    """A tool the model may use."""

    type: Literal["function"]
    function: Function


class FunctionName(OpenInput):
    """The name of a function to call."""

    name: str


class NamedTool(OpenInput):
    """The tool that the answer must call."""

    type: Literal["function"]
    function: FunctionName


def _check_some(value: int) -> int:
    """Return a limit that leaves room for an answer. Raises: PydanticCustomError for 0."""
    if value == 0:
        raise PydanticCustomError("no_room", "1 or more is allowed, or -1 for no limit")
    return value


ChatLimit = Annotated[Limit, AfterValidator(_check_some)]
"""A number of tokens, or -1 for no limit; a chat has an answer, so 0 is refused."""


class ChatRequest(SamplingInput):
    """A conversation to continue."""

    messages: Many[ChatMessage] = Field(min_length=1)
    max_tokens: ChatLimit | None = None
    max_completion_tokens: ChatLimit | None = None
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    response_format: Annotated[
        TextFormat | JsonObjectFormat | JsonSchemaFormat | None, Field(discriminator="type")
    ] = None
    tools: Many[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    safety_identifier: str | None = Field(None, description="Same as ``user``.")


class ChatTokenizeRequest(Input):
    """A text, or a conversation as the model would read it, to turn into tokens."""

    model: str | None = None
    prompt: str | None = None
    messages: Many[ChatMessage] | None = None
    add_special_tokens: Literal[False] | None = None


class TokenLogprob(Output):
    """A token, its bytes, and the natural logarithm of its probability (-9999 for zero)."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(TokenLogprob):
    """A token of the answer and the most likely ones in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Output):
    """The log probabilities of an answer's tokens."""

    content: list[TokenLogprobs]
    refusal: None = None


class Message(Output):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[ToolCall] | None = None


class ChatChoice(Output):
    """One answer and why it ended."""

    index: int
    message: Message
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class ChatAnswer(Output):
    """All answers to a request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class Sparse(Output):
    """A change, from which unchanged fields are left out."""

    @model_serializer(mode="wrap")
    def _without_nulls(self, serialize: SerializerFunctionWrapHandler) -> dict[str, JsonValue]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class FunctionDelta(Sparse):
    """What is new in a call."""

    name: str | None = None
    arguments: str


class ToolCallDelta(Sparse):
    """What is new in one of the calls."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(Sparse):
    """What is new in an answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(Output):
    """What is new in one answer; the last chunk says why it ended."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None


class ChatChunk(Output):
    """A piece of a stream; with ``include_usage`` the last one has usage and no choice."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None
