"""Reading the calls in an answer while it is generated: text in, text and pieces of calls out.

Only for answers that follow the grammar of ``chat_input``, in which calls have one form; an answer that was
cut short may end anywhere in it. Not here: that form (``tools``).
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace

from baichuan2_tpu.generate.stops import StopStrings
from baichuan2_tpu.server.api.schema_chat import FunctionCall, ToolCall
from baichuan2_tpu.server.api.tools import CALL_BEGIN

__all__ = ["CallPiece", "CallReader", "join_calls"]

# Between the arguments of one call and those of the next; ``call_begin`` and ``write_calls`` write it.
_HEAD = re.compile(r'(?:\}, )?\{"name": "([^"]*)", "arguments": ')


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What is new in one call; only its first piece has ``call_id`` and ``name``."""

    index: int
    arguments: str = ""
    call_id: str | None = None
    name: str | None = None


class CallReader:
    """Separates one answer into text and calls, in whatever pieces it comes.

    With ``is_forced`` the answer consists of calls only.
    """

    def __init__(self, *, is_forced: bool = False) -> None:
        self._is_forced = is_forced
        self._mark = StopStrings([CALL_BEGIN])
        self._held_characters = 0
        """Text held back because it may belong to the mark."""
        self._calls_text = ""
        """Text of calls that is not read yet."""
        self._calls = 0
        self._arguments: _Object | None = None

    @property
    def ends_with_call(self) -> bool:
        """Whether there are calls, and the last one is complete."""
        return self._calls > 0 and self._arguments is None

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """Return what is new in the text before all calls, and in the calls: one piece per call at most."""
        content = ""
        if self._mark.matched is None:
            content, text = self._split(text)
        self._calls_text += text
        return content, _merge(self._read_calls())

    def flush(self) -> str:
        """Return text that was held back because it might have been the mark of calls."""
        return "" if self._is_forced else self._mark.flush()

    def _split(self, text: str) -> tuple[str, str]:
        """Return the text before the mark of calls, as far as it is certain, and the text after the mark."""
        content = self._mark.push(text)
        self._held_characters += len(text) - len(content)
        if self._mark.matched is None:
            return content, ""
        return content, text[len(text) - (self._held_characters - len(CALL_BEGIN)) :]

    def _read_calls(self) -> list[CallPiece]:
        pieces: list[CallPiece] = []
        while True:
            if self._arguments is None:
                head = _HEAD.match(self._calls_text)
                if head is None:
                    return pieces
                self._arguments = _Object()
                self._calls_text = self._calls_text[head.end() :]
                pieces.append(CallPiece(self._calls, call_id=f"call_{uuid.uuid4().hex}", name=head[1]))
                self._calls += 1
            length = self._arguments.take(self._calls_text)
            if length:
                pieces.append(CallPiece(self._calls - 1, self._calls_text[:length]))
            self._calls_text = self._calls_text[length:]
            if not self._arguments.is_over:
                return pieces
            self._arguments = None


def _merge(pieces: Sequence[CallPiece]) -> list[CallPiece]:
    """Return one piece per call: clients overwrite the first of two entries with one index in a chunk."""
    merged: dict[int, CallPiece] = {}
    for piece in pieces:
        first = merged.setdefault(piece.index, piece)
        if first is not piece:
            merged[piece.index] = replace(first, arguments=first.arguments + piece.arguments)
    return list(merged.values())


def join_calls(pieces: Sequence[CallPiece]) -> list[ToolCall]:
    """Return the calls that pieces add up to."""
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
        for index, character in enumerate(text):
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
                    return index + 1
        return len(text)

    def _take_in_string(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        else:
            self._is_in_string = character != '"'
