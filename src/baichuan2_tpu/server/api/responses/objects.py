"""The response as clients read it: its items, its usage, and the events of a stream.

Not here: when which of them is written (``writer``), the request (``schema``).
Source: OpenAI's API reference, "The response object" and "Streaming events"; openai-python 3.57.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from baichuan2_tpu.server.api.schema_chat import TokenLogprobs
from baichuan2_tpu.server.errors import Output

__all__ = [
    "CallItem",
    "DeletedResponse",
    "IncompleteDetails",
    "ItemList",
    "MessageOutput",
    "OutputItem",
    "ResponseError",
    "ResponseObject",
    "ResponseUsage",
    "Status",
    "TextPart",
]

Status = Literal["in_progress", "completed", "incomplete"]


class TextPart(Output):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: tuple[JsonValue, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = ()


class MessageOutput(Output):
    """What the model said."""

    id: str
    type: Literal["message"] = "message"
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[TextPart]


class CallItem(Output):
    """A call of a function; ``call_id`` is what its output names."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: Status
    call_id: str
    name: str
    arguments: str


OutputItem = MessageOutput | CallItem


class InputDetails(Output):
    """How much of the input was reused, and how much was computed and kept."""

    cached_tokens: int
    cache_write_tokens: int


class OutputDetails(Output):
    """Tokens of thoughts, of which there are none."""

    reasoning_tokens: int = 0


class ResponseUsage(Output):
    """Tokens read and written."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails = OutputDetails()
    total_tokens: int

    @classmethod
    def count(cls, read: int, cached: int, written: int) -> ResponseUsage:
        """Return the usage of an answer of ``written`` tokens to a prompt of ``read`` tokens."""
        details = InputDetails(cached_tokens=cached, cache_write_tokens=read - cached)
        total = read + written
        return cls(input_tokens=read, input_tokens_details=details, output_tokens=written, total_tokens=total)


class IncompleteDetails(Output):
    """Why an answer is not complete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseError(Output):
    """Why an answer failed."""

    code: str
    message: str


class ResponseObject(Output):
    """A response; settings are those that it was computed with."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    background: Literal[False] = False
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None = None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: Mapping[str, None] = {"effort": None, "summary": None}
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: bool
    temperature: float
    text: JsonValue
    tool_choice: JsonValue
    tools: list[JsonValue]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    user: str | None


class DeletedResponse(Output):
    """Says that a response is not stored any more."""

    id: str
    object: Literal["response"] = "response"
    deleted: Literal[True] = True


class ItemList(Output):
    """Items that a response was computed from."""

    object: Literal["list"] = "list"
    data: list[JsonValue]
    first_id: str
    last_id: str
    has_more: bool
