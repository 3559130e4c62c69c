"""The fields of ``/v1/chat/completions``.

OpenAI's fields that do not apply to a text model accept only the value that asks for nothing, so that a
client that always sends its defaults is served and any other value is refused.
Not here: what they mean for generation (``chat_input``).
Source: OpenAI's API reference, "Create chat completion".
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, SerializerFunctionWrapHandler, model_serializer

from baichuan2_tpu.server.api.schema import Input, Many, Names, SamplingInput, Usage
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
    "TextPart",
    "TokenLogprobs",
    "Tool",
    "ToolCall",
    "ToolCallDelta",
    "ToolMessage",
    "UserMessage",
]

FinishReason = Literal["stop", "length", "tool_calls"]


class TextPart(Input):
    """A piece of text; images and audio are refused."""

    type: Literal["text"]
    text: str


Content = str | Many[TextPart]


class SystemMessage(Input):
    """Instructions for the model; only allowed as the first message."""

    role: Literal["system", "developer"]
    content: Content


class UserMessage(Input):
    """What the user wrote."""

    role: Literal["user"]
    content: Content


class FunctionCall(Input):
    """A function's name, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(Input):
    """A call of a function by the model."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class AssistantMessage(Input):
    """What the model answered."""

    role: Literal["assistant"]
    content: Content | None = None
    refusal: None = None
    audio: None = None
    annotations: None = None
    function_call: None = None
    tool_calls: Many[ToolCall] | None = None


class ToolMessage(Input):
    """What a function returned."""

    role: Literal["tool"]
    content: Content
    tool_call_id: str


ChatMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


class TextFormat(Input):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Input):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(Input):
    """A JSON schema and its name."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    schema_: dict[str, JsonValue] | None = Field(None, alias="schema")
    strict: bool | None = None


class JsonSchemaFormat(Input):
    """JSON that follows a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class Function(Input):
    """A function the model may call."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    description: str | None = None
    parameters: dict[str, JsonValue] | None = None
    strict: bool | None = None


class Tool(Input):
    """A tool the model may use."""

    type: Literal["function"]
    function: Function


class FunctionName(Input):
    """The name of a function to call."""

    name: str


class NamedTool(Input):
    """The tool that the answer must call."""

    type: Literal["function"]
    function: FunctionName


class ChatRequest(SamplingInput):
    """A conversation to continue."""

    messages: Many[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1, lt=2**31)
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: Annotated[
        TextFormat | JsonObjectFormat | JsonSchemaFormat | None, Field(discriminator="type")
    ] = None
    tools: Many[Tool] | None = Field(None, max_length=128)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    functions: None = None
    function_call: None = None
    audio: None = None
    metadata: Annotated[dict[str, str], Names] | None = Field(None, max_length=0)
    modalities: Many[Literal["text"]] | None = None
    moderation: None = None
    prediction: None = None
    prompt_cache_key: str | None = Field(None, description="Not needed: prefixes are found by their tokens.")
    prompt_cache_retention: None = None
    reasoning_effort: Literal["none"] | None = None
    safety_identifier: str | None = Field(None, description="Same as ``user``.")
    service_tier: Literal["auto", "default"] | None = None
    store: Literal[False] | None = None
    verbosity: Literal["medium"] | None = None
    web_search_options: None = None


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
