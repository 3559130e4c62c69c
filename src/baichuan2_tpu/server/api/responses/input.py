"""From a request for a response to a chat: its items with those before them, as messages; its settings.

Everything that a chat and a response have in common is decided once, for chats. Not here: the fields
(``schema``), what a chat means for generation (``api.chat_input``), keeping responses (``store``).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Literal, cast

from pydantic_core import to_json

from baichuan2_tpu.errors import ContextLengthError
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.server.api.responses.schema import (
    ITEMS,
    AllowedTools,
    FormatSchema,
    FunctionCallItem,
    FunctionOutputItem,
    FunctionTool,
    InputItem,
    ItemReference,
    MessageItem,
    NamedFunction,
    ReasoningItem,
    ResponseRequest,
)
from baichuan2_tpu.server.api.responses.store import ResponseStore, StoredItem
from baichuan2_tpu.server.api.schema import SamplingInput
from baichuan2_tpu.server.api.schema_chat import (
    AssistantMessage,
    ChatMessage,
    ChatRequest,
    Content,
    FunctionCall,
    JsonObjectFormat,
    JsonSchemaFormat,
    NamedTool,
    SystemMessage,
    TextFormat,
    Tool,
    ToolCall,
    ToolMessage,
    UserMessage,
)
from baichuan2_tpu.server.errors import ApiError

__all__ = ["LOGPROBS", "as_chat", "blame_response", "check_text", "new_id", "read_conversation"]

LOGPROBS = "message.output_text.logprobs"
"""What can be included."""

ToolChoice = Literal["none", "auto", "required"] | NamedTool | None

_MAX_ITEMS = 4096  # as many as a body may have, see ``transport.body_counts``

_LEVELS_OUTSIDE = 10  # of a field in a response in an event; pydantic writes 255 levels in all

_PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco"}
_FIELDS = {"messages": "input", "response_format": "text", "max_tokens": "max_output_tokens"}
"""What a field of a chat is called here."""


def check_text(body: ResponseRequest) -> None:
    """Check that a request can be repeated in its response and kept. Raises: ApiError naming the field."""
    name = next((name for name in type(body).model_fields if not _is_writable(getattr(body, name))), None)
    if name is not None:
        raise ApiError(
            f"{name} holds what JSON in UTF-8 cannot: half of a surrogate pair, or more than 240 levels; "
            "send Unicode text, and simpler values",
            status=422,
            param=name,
            code="invalid_value",
        )


def read_conversation(body: ResponseRequest, store: ResponseStore, holder: str) -> tuple[StoredItem, ...]:
    """Return what the model has to read: the items of the previous response, then those of the input.

    References are replaced by what they refer to, and thoughts of other models are dropped.

    Raises: ApiError for what is not stored, and where it is more than a body may have.
    """
    before = _previous_items(body, store, holder)
    items: list[StoredItem] = []
    taken: set[str] = set()
    size_bytes, most_bytes = 0, store.limits.conversation_bytes
    for item in chain(before, _new_items(body, store, holder)):
        size_bytes += len(item.content)
        # Before anything is copied: references to one item are short, and each stands for all of it.
        if size_bytes > most_bytes:
            raise _too_large(f"more than the {most_bytes} bytes that are allowed", 413, "body_too_large")
        if len(items) == _MAX_ITEMS:
            raise _too_large(f"more than {_MAX_ITEMS} items", 422, "too_many_values")
        items.append(_renamed(item) if item.id in taken else item)
        taken.add(item.id)
    if not items:
        raise ApiError("input is empty; give a text or a message", param="input")
    return tuple(items)


def as_chat(body: ResponseRequest, items: Sequence[StoredItem]) -> ChatRequest:
    """Return the chat that a response is the next answer of.

    Raises: ApiError for an output of no call, and for a limit that is given twice.
    """
    sampling = {name: getattr(body, name) for name in SamplingInput.model_fields}
    tools, choice = _tools(body)
    has_logprobs = bool(body.top_logprobs) or LOGPROBS in (body.include or ())
    return ChatRequest(
        **{**sampling, "n_predict": None},
        messages=list(_messages(body.instructions, items)),
        max_tokens=_limit(body),
        logprobs=has_logprobs,
        top_logprobs=(body.top_logprobs or 0) if has_logprobs else None,
        response_format=_format(body),
        tools=tools,
        tool_choice=choice,
        parallel_tool_calls=body.parallel_tool_calls,
        safety_identifier=body.safety_identifier,
    )


def blame_response(error: ApiError | ContextLengthError) -> ApiError:
    """Return the error of a chat with the names of a response's fields."""
    if isinstance(error, ContextLengthError):
        return ApiError(str(error), param="input", code="context_length_exceeded")
    param = _FIELDS.get(error.param or "", error.param)
    return ApiError(str(error), status=error.status, param=param, code=error.code)


def new_id(kind: str) -> str:
    """Return an id for an item of a kind, or for a response; nobody can guess it."""
    return f"{_PREFIXES.get(kind, 'resp')}_{uuid.uuid4().hex}"


def _is_writable(value: object) -> bool:
    inside = value
    for _ in range(_LEVELS_OUTSIDE):
        inside = [inside]
    try:
        to_json(inside)
    except ValueError:
        return False
    return True


def _previous_items(body: ResponseRequest, store: ResponseStore, holder: str) -> tuple[StoredItem, ...]:
    if body.previous_response_id is None:
        return ()
    try:
        return store.get(holder, body.previous_response_id).items
    except ApiError as error:
        # OpenAI's status and code, after which clients send the whole input.
        raise ApiError(
            str(error), param="previous_response_id", code="previous_response_not_found"
        ) from error


def _new_items(body: ResponseRequest, store: ResponseStore, holder: str) -> Iterator[StoredItem]:
    if isinstance(body.input, str):
        yield _stored(MessageItem(role="user", content=body.input))
        return
    for item in body.input:
        if isinstance(item, ItemReference):
            yield _referred(item, store, holder)
        elif not isinstance(item, ReasoningItem):
            yield _stored(item)


def _too_large(what: str, status: int, code: str) -> ApiError:
    return ApiError(
        f"the conversation has {what}, with what is stored of it; begin a new one, or leave the oldest out",
        status=status,
        param="input",
        code=code,
    )


def _renamed(item: StoredItem) -> StoredItem:
    """Return an item with an id of its own: some clients give all the same."""
    fields = cast("dict[str, object]", json.loads(item.content))
    return _write(new_id(str(fields["type"])), fields)


def _write(item_id: str, fields: Mapping[str, object]) -> StoredItem:
    return StoredItem(item_id, json.dumps({**fields, "id": item_id}, ensure_ascii=False).encode())


def _referred(item: ItemReference, store: ResponseStore, holder: str) -> StoredItem:
    stored = store.item(holder, item.id)
    if stored is None:
        raise ApiError(
            f"the item {quote(item.id)} is not stored (any more); send the item itself",
            param="input",
            code="item_not_found",
        )
    return stored


def _stored(item: MessageItem | FunctionCallItem | FunctionOutputItem) -> StoredItem:
    """Return an item as it is kept and listed: complete, with an id, and without what is not read."""
    fields: dict[str, object] = {"id": "", "type": item.type, "status": "completed"}
    match item:
        case MessageItem():
            fields |= {"role": item.role, "content": _parts(item)}
        case FunctionCallItem():
            fields |= {"call_id": item.call_id, "name": item.name, "arguments": item.arguments}
        case FunctionOutputItem():
            fields |= {"call_id": item.call_id, "output": _output(item.output)}
    return _write(item.id or new_id(item.type), fields)


def _parts(item: MessageItem) -> list[dict[str, object]]:
    """Return the content of a message as a list of parts."""
    is_own = item.role == "assistant"
    kind = "output_text" if is_own else "input_text"
    more: Mapping[str, object] = {"annotations": []} if is_own else {}
    if not isinstance(item.content, list):
        return [{"type": kind, "text": item.content or "", **more}]
    return [
        {"type": "refusal", "refusal": part.refusal}
        if part.type == "refusal"
        else {"type": kind, "text": part.text, **more}
        for part in item.content
    ]


def _output(output: Content) -> object:
    if isinstance(output, str):
        return output
    return [{"type": "input_text", "text": part.text or part.refusal} for part in output]


def _messages(instructions: str | None, items: Sequence[StoredItem]) -> Iterator[ChatMessage]:
    if instructions:
        yield SystemMessage(role="system", content=instructions)
    yield from _turns(ITEMS.validate_json(b"[" + b",".join(item.content for item in items) + b"]"))


def _turns(items: Iterable[InputItem]) -> Iterator[ChatMessage]:
    """Yield messages; calls belong to the answer before them, as the model wrote them."""
    name_of_call: dict[str, str] = {}
    answer: AssistantMessage | None = None
    calls: list[ToolCall] = []
    for item in items:
        if isinstance(item, FunctionCallItem):
            function = FunctionCall(name=item.name, arguments=item.arguments)
            calls.append(ToolCall(id=item.call_id, function=function))
            name_of_call[item.call_id] = item.name
            continue
        if answer is not None or calls:
            yield _answer(answer, calls)
        answer, calls = None, []
        if isinstance(item, MessageItem) and item.role == "assistant":
            answer = AssistantMessage(role="assistant", content=item.content)
        elif isinstance(item, MessageItem):
            yield _question(item)
        elif isinstance(item, FunctionOutputItem):
            yield _result(item, name_of_call)
    if answer is not None or calls:
        yield _answer(answer, calls)


def _answer(answer: AssistantMessage | None, calls: list[ToolCall]) -> AssistantMessage:
    content = None if answer is None else answer.content
    return AssistantMessage(role="assistant", content=content, tool_calls=calls or None)


def _question(item: MessageItem) -> ChatMessage:
    if item.role == "user":
        return UserMessage(role="user", content=item.content)
    return SystemMessage(role="system", content=item.content)


def _result(item: FunctionOutputItem, name_of_call: Mapping[str, str]) -> ToolMessage:
    if item.call_id not in name_of_call:
        raise ApiError(
            f"the call_id {quote(item.call_id)} is of no function_call before it; put the call in front of "
            "its output, or give previous_response_id",
            param="input",
        )
    return ToolMessage(role="tool", content=item.output, name=name_of_call[item.call_id])


def _limit(body: ResponseRequest) -> int | None:
    own, other = body.max_output_tokens, body.n_predict
    if own is not None and other not in (None, own):
        raise ApiError(
            f"max_output_tokens is {own} and n_predict is {other}; both name the same limit: give only one",
            param="max_output_tokens",
        )
    return other if own is None else own


def _format(body: ResponseRequest) -> TextFormat | JsonObjectFormat | JsonSchemaFormat | None:
    text_format = body.text.format if body.text else None
    if isinstance(text_format, FormatSchema):
        return JsonSchemaFormat(type="json_schema", json_schema=text_format)
    return text_format


def _tools(body: ResponseRequest) -> tuple[list[Tool] | None, ToolChoice]:
    """Return the functions and the choice in a chat's form; of allowed tools the others are left out."""
    functions, choice = list(body.tools or ()), body.tool_choice
    if isinstance(choice, AllowedTools):
        functions, choice = _allowed(functions, choice), choice.mode
    elif isinstance(choice, NamedFunction):
        choice = NamedTool(type="function", function=choice)
    return [Tool(type="function", function=function) for function in functions] or None, choice


def _allowed(functions: Sequence[FunctionTool], choice: AllowedTools) -> list[FunctionTool]:
    allowed = {function.name for function in choice.tools}
    unknown = next(iter(sorted(allowed - {function.name for function in functions})), None)
    if unknown is not None:
        raise ApiError(f"tool_choice names {quote(unknown)}; name one of the tools", param="tool_choice")
    return [function for function in functions if function.name in allowed]
