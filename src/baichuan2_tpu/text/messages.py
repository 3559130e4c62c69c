"""The messages of a conversation, and the order they may come in.

Not here: the form that a model expects (``template``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.text.tokenizer import check_text

__all__ = ["Message", "Role", "check_order", "split_rounds"]

Role = Literal["system", "user", "assistant"]

_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Raises: RequestError for an unknown role, or content that is not a text of Unicode.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in _ROLES:
            raise RequestError(f"message role is {quote(self.role)}; one of {', '.join(_ROLES)} is allowed")
        if not isinstance(cast("object", self.content), str):
            raise RequestError(f"a message is {quote(self.content)}; a text is allowed")
        check_text(self.content)


def check_order(messages: Sequence[Message]) -> None:
    """Check that messages make a conversation: an optional system message first, then the user's.

    Several user messages may follow each other, as in the official code; two answers may not.

    Raises: RequestError naming the message that is out of place, or an empty user message.
    """
    previous: Role | None = None
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise RequestError(f"message {index} is a system message; it is allowed first only")
        if message.role == "assistant" and previous != "user":
            raise RequestError(f"message {index} is an answer to no user message; put the question before it")
        if message.role == "user" and not message.content.strip():
            raise RequestError(f"message {index} is empty; write a prompt")
        previous = message.role
    if previous in {None, "system"}:
        raise RequestError("there is no user message; write a prompt")


def split_rounds(messages: Sequence[Message]) -> tuple[str, list[list[Message]]]:
    """Return the system message, empty when there is none, and the rounds: a user message and its answer.

    A greeting before the first question is a round of its own, and messages may be empty.

    Raises: RequestError for a system message that is not the first, or when there is no other message.
    """
    system = ""
    rounds: list[list[Message]] = []
    for index, message in enumerate(messages):
        if message.role == "system" and index > 0:
            raise RequestError(f"message {index} is a system message; it is allowed first only")
        if message.role == "system":
            system = message.content
        elif message.role == "user" or not rounds:
            rounds.append([message])
        else:
            rounds[-1].append(message)
    if not rounds:
        raise RequestError("there is no user message; write a prompt")
    return system, rounds
