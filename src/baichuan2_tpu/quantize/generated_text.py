"""Calibration text that a model writes itself, where the user gave none.

Short beginnings in English, Chinese and code are continued by sampling from the model's own distribution;
where it ends a text, the next beginning follows. Every window has a random generator of its own, and the CPU
engine computes the same bits in any batch: the same model gives the same text.
Not here: what the text is for (``calibration_text``).
Source: Liu et al., "LLM-QAT" (2023), on data that a model generates for its own quantisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Chunk, Engine
from baichuan2_tpu.engine.base import Sequence as EngineSequence
from baichuan2_tpu.generate.sampling import distribution, draw
from baichuan2_tpu.generate.settings import SamplingSettings

__all__ = ["BEGINNINGS", "generate_windows"]

BEGINNINGS = (
    "The history of",
    "今天",
    "def ",
    "Once upon a time",
    "中国的",
    "In mathematics,",
    "请问",
    "# Introduction\n\n",
    "The company said on Monday that",
    "根据",
    "Question: ",
    "如何",
    "import ",
    "Scientists have found",
    "人工智能",
    "A: ",
    "The following table",
    "从前有",
    "Abstract\n\n",
    "第一章",
    "Dear ",
    "问:",
    "class ",
    "Step 1:",
    "据新华社报道,",
    "How do I",
    "这本书",
    "<html>\n",
    "Yesterday I",
    "首先,",
    "1. ",
    "方程",
)
"""Beginnings of the kinds of text that the models are used on; a window begins with one and meets others."""

_SAMPLING = SamplingSettings()
"""The model's own distribution: likelier text only would show fewer kinds of inputs."""

_SEED = 2023


def generate_windows(
    engine: Engine,
    beginnings: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    shape: tuple[int, int],
    *,
    batch: int,
    report: Callable[[int], None],
) -> NDArray[np.int32]:
    """Let the model write windows of the given ``shape``, ``batch`` windows at a time.

    ``report`` is called with the number of windows that are written. Shapes: -> (W, T).
    """
    windows, length = shape
    texts = [_Window(beginnings, stop_ids, number, length) for number in range(windows)]
    for start in range(0, windows, batch):
        _write(engine, texts[start : start + batch])
        report(min(start + batch, windows))
    return np.array([text.tokens for text in texts], np.int32)


class _Window:
    """One text that grows token by token."""

    def __init__(
        self, beginnings: Sequence[Sequence[int]], stop_ids: frozenset[int], number: int, length: int
    ) -> None:
        self.tokens: list[int] = []
        self._length = length
        self._stop_ids = stop_ids
        self._beginnings = beginnings
        self._next_beginning = number
        self._given: list[int] = []
        self._generator = np.random.default_rng([_SEED, number])
        self._begin()

    @property
    def is_full(self) -> bool:
        """Whether it is as long as it should be."""
        return len(self.tokens) == self._length

    def grow(self, logits: NDArray[np.float32] | None) -> int:
        """Add the next token and return it: one of a beginning, else one drawn from ``logits``."""
        if self._given or logits is None:
            token = self._given.pop(0)
        else:
            token = draw(distribution(logits, _SAMPLING), self._generator)
            if token in self._stop_ids:
                self._begin()
        self.tokens.append(token)
        return token

    def _begin(self) -> None:
        """Let the next beginning come next."""
        self._given = list(self._beginnings[self._next_beginning % len(self._beginnings)])
        self._next_beginning += 1


def _write(engine: Engine, texts: Sequence[_Window]) -> None:
    """Fill windows of equal length side by side."""
    with ExitStack() as stack:
        sequences = [stack.enter_context(engine.open_sequence()) for _ in texts]
        logits: Sequence[NDArray[np.float32] | None] = [None] * len(texts)
        while True:
            tokens = [text.grow(_last(rows)) for text, rows in zip(texts, logits, strict=True)]
            if texts[0].is_full:
                return
            logits = engine.forward(_chunks(sequences, tokens))


def _chunks(sequences: Sequence[EngineSequence], tokens: Sequence[int]) -> list[Chunk]:
    return [Chunk(sequence, [token]) for sequence, token in zip(sequences, tokens, strict=True)]


def _last(logits: NDArray[np.float32] | None) -> NDArray[np.float32] | None:
    return None if logits is None else logits[-1]
