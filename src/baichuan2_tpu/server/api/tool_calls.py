"""Reading the calls in an answer while it grows: text in, text and pieces of calls out.

Only for answers that follow the grammar of ``chat_grammar``, whose calls have one form; one that was cut ends
anywhere in it. Not here: that form (``tools``).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from baichuan2_tpu.server.api.schema_chat import FunctionCall, ToolCall
from baichuan2_tpu.server.api.tools import CALL_BEGIN

__all__ = ["CallPiece", "CallReader", "joined_calls"]

# What is between the arguments of one call and those of the next; ``call_begin`` and ``calls_text`` write it.
_HEAD = re.compile(r'(?:\}, )?\{"name": "([^"]*)", "arguments": ')


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What is new of one call; ``call_id`` and ``name`` come with its first piece only."""

    index: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


class CallReader:
    """Takes one answer apart, whatever pieces it comes in; it is calls alone where ``is_forced``."""

    def __init__(self, *, is_forced: bool = False) -> None:
        self._is_forced = is_forced
        self._held = ""
        """What may be the beginning of calls, or of the next call."""
        self._is_calling = False
        self._calls = 0
        self._arguments: _Object | None = None

    @property
    def ends_with_call(self) -> bool:
        """Whether there are calls, and the last one that has begun is whole."""
        return self._calls > 0 and self._arguments is None

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """Return what is new of the text before all calls, and of the calls."""
        self._held += text
        said = ""
        if not self._is_calling:
            said, mark, behind = self._held.partition(CALL_BEGIN)
            self._is_calling = bool(mark)
            kept = 0 if mark else _possible_mark(said)
            self._held = behind or said[len(said) - kept :]
            said = said[: len(said) - kept]
        return said, self._read_calls() if self._is_calling else []

    def flush(self) -> str:
        """Return text that was held back because it might have been the beginning of calls."""
        return "" if self._is_calling or self._is_forced else self._held

    def _read_calls(self) -> list[CallPiece]:
        pieces: list[CallPiece] = []
        while True:
            if self._arguments is None:
                head = _HEAD.match(self._held)
                if head is None:
                    return pieces
                self._arguments = _Object()
                self._held = self._held[head.end() :]
                pieces.append(CallPiece(self._calls, call_id=f"call_{uuid.uuid4().hex}", name=head[1]))
                self._calls += 1
            length = self._arguments.take(self._held)
            if length:
                pieces.append(CallPiece(self._calls - 1, self._held[:length]))
            self._held = self._held[length:]
            if not self._arguments.is_over:
                return pieces
            self._arguments = None


def joined_calls(pieces: Sequence[CallPiece]) -> list[ToolCall]:
    """Return the calls that pieces make."""
    return [
        ToolCall(
            id=first.call_id or "",
            function=FunctionCall(
                name=first.name or "",
                arguments="".join(piece.arguments for piece in pieces if piece.index == first.index),
            ),
        )
        for first in pieces
        if first.call_id is not None
    ]


class _Object:
    """Finds the end of a JSON object in text that comes in pieces."""

    def __init__(self) -> None:
        self.is_over = False
        self._depth = 0
        self._is_in_string = False
        self._is_escaped = False

    def take(self, text: str) -> int:
        """Return how many characters still belong to the object."""
        for place, character in enumerate(text):
            if self._is_in_string:
                self._take_in_string(character)
            elif character == '"':
                self._is_in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth == 0:
                    self.is_over = True
                    return place + 1
        return len(text)

    def _take_in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        else:
            self._is_in_string = character != '"'


def _possible_mark(text: str) -> int:
    """Return the length of the longest end of a text that begins the mark of calls."""
    return next((n for n in range(len(CALL_BEGIN) - 1, 0, -1) if text.endswith(CALL_BEGIN[:n])), 0)
