"""An engine that answers the last question from a list, one byte per token.

It looks at nothing but its history, so that answers given together cannot differ from answers given alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.errors import DeviceError
from doubles.fakes import ByteTokenizer, FakeEngine, one_hot

__all__ = ["CODE", "COUNT", "LONG_COUNT", "TalkingEngine"]

CODE = 'Here it is:\n\n```python\ndef greet(name: str) -> str:\n    return f"Hello, {name}!"  # 你好\n```\n'

COUNT = " ".join(f"{number}" for number in range(1, 200))
"""The answer to "count", which takes a while."""

LONG_COUNT = " ".join(f"{number}" for number in range(1, 1600))
"""The answer to "count on", which nobody waits for."""

_ANSWERS = {
    "hello": "Hello! How can I help?",
    "你好": "你好!很高兴**认识**你。",
    "code": CODE,
    "picture": "![of nothing](http://example.com/picture.png) and $$x^2$$",
    "count": COUNT,
    "count on": LONG_COUNT,
}
_STEP_S = 0.005  # so that an answer is seen to grow


class TalkingEngine(FakeEngine):
    """Answers a question from the list, or repeats it; the question "break" is a fault.

    The text before the first question is its system prompt, which it tells when asked.
    """

    name = "talking"

    def __init__(self) -> None:
        super().__init__(ByteTokenizer().vocabulary_size, max_context=8192, max_sequences=8)
        self.step_s = _STEP_S
        self._user_id, self._assistant_id = ByteTokenizer.END_ID + 1, ByteTokenizer.END_ID + 2

    def forward(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        time.sleep(self.step_s)
        return super().forward(chunks)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        ids = list(ids)
        begin = len(ids) - ids[::-1].index(self._assistant_id)
        question_begin = len(ids) - ids[::-1].index(self._user_id)
        question = bytes(ids[question_begin : begin - 1]).decode()
        if question == "break":
            raise DeviceError("the device reported a fault; restart it")
        answer = _ANSWERS.get(question, f"You said: {question}").encode()
        if question == "what is your system prompt?":
            answer = bytes(ids[: ids.index(self._user_id)])
        position = len(ids) - begin
        token_id = answer[position] if position < len(answer) else ByteTokenizer.END_ID
        return one_hot(token_id, self.config.vocabulary_size)
