"""From the messages that clients send to a conversation that a model reads.

Clients send system messages anywhere, a greeting first, several questions or answers in a row, and empty
messages. A model knows one system message and two sides: here messages of one side are joined, in order.
Not here: the fields (``schema_chat``), how a model wants a conversation written (``text.template``).
"""

from __future__ import annotations

from collections.abc import Sequence

from baichuan2_tpu.server.api.schema_chat import (
    AssistantMessage,
    ChatMessage,
    Content,
    SystemMessage,
    ToolMessage,
    UserMessage,
)
from baichuan2_tpu.server.api.tools import write_calls, write_result
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.text.messages import Message, Role

__all__ = ["read_messages"]

_GAP = "\n\n"
"""What separates messages of one side that are joined."""


def read_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Return the system message, if there is one, and the messages of the two sides by turns.

    Tool calls become assistant text, and tool results user text. Where several users or assistants have
    names, each message begins with its speaker's.

    Raises: ApiError for the result of a call that was not made.
    """
    names = _Names(messages)
    system: list[str] = []
    turns = _Turns()
    name_of_call: dict[str, str] = {}
    for message in messages:
        match message:
            case SystemMessage():
                system.append(_text(message.content))
            case UserMessage():
                name_of_call = {}
                turns.add("user", names.tell(message, _text(message.content)))
            case AssistantMessage():
                name_of_call |= {call.id: call.function.name for call in message.tool_calls or ()}
                turns.add("assistant", names.tell(message, _answer(message)))
            case ToolMessage():
                turns.add_result(_result(message, name_of_call))
    instructions = _GAP.join(filter(None, system))
    head = [Message("system", instructions)] if instructions else []
    return [*head, *(turns.messages or [Message("user", "")])]


class _Turns:
    """The messages of the two sides, those of one side joined."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._ends_with_result = False

    def add(self, role: Role, content: str, gap: str = _GAP) -> None:
        """Append a message, or join it to the last one."""
        if self.messages and self.messages[-1].role == role:
            content = gap.join(filter(None, [self.messages.pop().content, content]))
        self.messages.append(Message(role, content))
        self._ends_with_result = False

    def add_result(self, content: str) -> None:
        """Append the result of a call; the results of one answer's calls stand line by line."""
        self.add("user", content, "\n" if self._ends_with_result else _GAP)
        self._ends_with_result = True


class _Names:
    """Which speakers have to be told apart: OpenAI's ``name`` is for participants of one role."""

    def __init__(self, messages: Sequence[ChatMessage]) -> None:
        users = {message.name for message in messages if isinstance(message, UserMessage)}
        assistants = {message.name for message in messages if isinstance(message, AssistantMessage)}
        self._is_told = {"user": len(users) > 1, "assistant": len(assistants) > 1}

    def tell(self, message: UserMessage | AssistantMessage, content: str) -> str:
        """Return a content with its speaker's name in front where there are several speakers."""
        is_told = self._is_told[message.role] and message.name and content
        return f"{message.name}: {content}" if is_told else content


def _answer(message: AssistantMessage) -> str:
    calls = write_calls(message.tool_calls) if message.tool_calls else ""
    return (_text(message.content) or message.refusal or "") + calls


def _result(message: ToolMessage, name_of_call: dict[str, str]) -> str:
    name = name_of_call.get(message.tool_call_id or "") or message.name
    if name is None:
        raise ApiError(
            f"the tool_call_id {message.tool_call_id!r} is of no call in the assistant message before it; "
            "put the assistant message with its tool_calls before the results",
            param="messages",
        )
    return write_result(name, _text(message.content))


def _text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text or part.refusal for part in content)
