"""From the messages of a chat as OpenAI writes them to those of a conversation with this model.

Not here: how the model wants them written (``text.template``), what the tools are (``tools``).
"""

from __future__ import annotations

from collections.abc import Sequence

from baichuan2_tpu.server.api.schema_chat import (
    AssistantMessage,
    ChatMessage,
    SystemMessage,
    TextPart,
    ToolMessage,
    UserMessage,
)
from baichuan2_tpu.server.api.tools import calls_text, result_text
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.text.messages import Message

__all__ = ["chat_messages"]


def chat_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the messages; calls are what the model wrote, and results of functions what a user says.

    Raises: ApiError for an answer of nothing, or the result of a call that was not made.
    """
    found: list[Message] = []
    name_of_call: dict[str, str] = {}
    is_result = False
    for message in messages:
        match message:
            case SystemMessage():
                found.append(Message("system", _text(message.content)))
            case UserMessage():
                name_of_call = {}
                found.append(Message("user", _text(message.content)))
            case AssistantMessage():
                name_of_call = {call.id: call.function.name for call in message.tool_calls or ()}
                found.append(Message("assistant", _answer(message)))
            case ToolMessage():
                result = _result(message, name_of_call)
                # Results of one answer's calls are said together.
                before = f"{found.pop().content}\n" if is_result else ""
                found.append(Message("user", before + result))
        is_result = isinstance(message, ToolMessage)
    return found


def _answer(message: AssistantMessage) -> str:
    if message.content is None and not message.tool_calls:
        raise ApiError("a message of the assistant has neither content nor tool_calls", param="messages")
    calls = calls_text(message.tool_calls) if message.tool_calls else ""
    return _text(message.content or "") + calls


def _result(message: ToolMessage, name_of_call: dict[str, str]) -> str:
    name = name_of_call.get(message.tool_call_id)
    if name is None:
        raise ApiError(
            f"the tool_call_id {message.tool_call_id!r} is of no call in the answer before it; "
            "put that answer with its tool_calls before the results",
            param="messages",
        )
    return result_text(name, _text(message.content))


def _text(content: str | Sequence[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)
