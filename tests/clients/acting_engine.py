"""An engine that plays its part in what the clients are asked to do: greets, calls, counts, writes JSON.

It reads nothing but its prompt, so answers side by side do not depend on each other. Its tokens are bytes,
and a few longer pieces across the marks of calls: with those a server hears of the end of one call and the
start of the next, arguments included, in one token.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.errors import RequestError
from doubles.fakes import ByteTokenizer, FakeEngine, one_hot

__all__ = ["ActingEngine", "ActingTokenizer"]

_TOKEN_S = 0.002
_PERSON = '{"name": "Ada", "age": 36}'
_COUNT = " ".join(map(str, range(1, 3000)))
_TOOL_NAME = re.compile(r'^\{"name": "([^"]+)"', re.MULTILINE)


class ActingTokenizer(ByteTokenizer):
    """Bytes, and behind the control ids the longer pieces."""

    PIECES = (b'arguments": {"', b'"}}, {"name": "', b'"}}]</', b"name")

    @property
    def vocabulary_size(self) -> int:
        return super().vocabulary_size + len(self.PIECES)

    def token_bytes(self, token_id: int) -> bytes:
        first = super().vocabulary_size
        if not 0 <= token_id < self.vocabulary_size:
            raise RequestError(f"token id {token_id} is not in the vocabulary")
        return self.PIECES[token_id - first] if token_id >= first else super().token_bytes(token_id)

    def next_id(self, text: bytes) -> int:
        """Return the longest token that a text begins with."""
        first = super().vocabulary_size
        pieces = (first + number for number, piece in enumerate(self.PIECES) if text.startswith(piece))
        return next(pieces, text[0] if text else self.END_ID)


class ActingEngine(FakeEngine):
    """Answers the last question with what a model would say that does everything right."""

    name = "acting"

    def __init__(self) -> None:
        self._tokenizer = ActingTokenizer()
        super().__init__(self._tokenizer.vocabulary_size, max_context=16_384, max_sequences=8)
        self._user_id, self._assistant_id = ByteTokenizer.END_ID + 1, ByteTokenizer.END_ID + 2

    def forward(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        time.sleep(_TOKEN_S)
        return super().forward(chunks)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        ids = list(ids)
        if self._assistant_id not in ids:  # not a chat
            return one_hot(ord("."), self.config.vocabulary_size)
        begin = len(ids) - ids[::-1].index(self._assistant_id)
        is_role = [token_id in (self._user_id, self._assistant_id) for token_id in ids]
        asked = len(ids) - is_role[::-1].index(True, len(ids) - begin + 1) if sum(is_role) > 1 else 0
        system = self._text(ids[: is_role.index(True)])
        answer = _answer(self._text(ids[asked : begin - 1]), system).encode()
        written = len(self._text(ids[begin:]).encode())
        return one_hot(self._tokenizer.next_id(answer[written:]), self.config.vocabulary_size)

    def _text(self, ids: Sequence[int]) -> str:
        return b"".join(map(self._tokenizer.token_bytes, ids)).decode()


def _answer(question: str, system: str) -> str:
    tools: list[str] = _TOOL_NAME.findall(system)
    if "<tool_result" in question:
        return "It is sunny." if "sunny" in question else "It is not known."
    if "notes.txt" in question:
        return _calls("Read", ['{"filepath": "notes.txt"}'])
    if "weather" in question:
        cities = [city for city in ("Paris", "Rome") if city in question]
        return _calls(tools[0], [f'{{"city": "{city}"}}' for city in cities]) if tools else "Look outside."
    if "Ada" in question:
        return _calls(tools[0], [_PERSON]) if tools else _PERSON
    return _COUNT if "Count on" in question else "Hello! How can I help?"


def _calls(name: str, arguments: Sequence[str]) -> str:
    calls = (f'{{"name": "{name}", "arguments": {text}}}' for text in arguments)
    return f"<tool_call>[{', '.join(calls)}]</tool_call>"
