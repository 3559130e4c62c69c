"""Score passages with the float weights of a checkpoint: what quantising is judged by.

All passages go through a layer before the next one is read, so that a 7B needs the memory of one layer, of
the head and of the states. Not here: the arithmetic (``reference.float_model``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import check_room
from baichuan2_tpu.evaluate.passages import (
    Passage,
    PassageScore,
    Progress,
    Reading,
    RowCollector,
    readings_of,
)
from baichuan2_tpu.generate.answer import SCORED_ROWS
from baichuan2_tpu.reference.float_model import FloatModel

__all__ = ["FloatScorer"]

_STATE_BYTES = 1 << 29
"""Of the passages that go through the layers together; 32,768 tokens of a 7B."""


class FloatScorer:
    """Scores with a float model; ``max_context`` is the model's own."""

    def __init__(self, model: FloatModel) -> None:
        self._model = model

    @property
    def max_context(self) -> int:
        """Tokens that can stand before a scored one."""
        return self._model.config.max_context

    def score(self, passages: Sequence[Passage], on_progress: Progress | None = None) -> list[PassageScore]:
        """Score every passage; see ``Scorer``."""
        readings = sorted(readings_of(passages), key=lambda reading: len(reading.ids))
        for reading in readings:
            check_room(0, len(reading.ids), self.max_context)
        scores: dict[int, PassageScore] = {}
        batches = list(self._batches(readings))
        layers = self._model.config.layers
        for number, batch in enumerate(batches):
            states = self._model.embed(_pad(batch))
            for layer in range(layers):
                self._model.run_layer(layer, states)
                if on_progress is not None:
                    on_progress(number * layers + layer + 1, len(batches) * layers)
            for reading, own in zip(batch, states, strict=True):
                self._collect(reading, own, passages, scores)
        return [scores[place] for place in range(len(passages))]

    def _batches(self, readings: Sequence[Reading]) -> Iterator[list[Reading]]:
        """Yield readings of similar length whose states, padded, fit the memory for them."""
        tokens = _STATE_BYTES // (4 * self._model.config.hidden_size)
        batch: list[Reading] = []
        for reading in readings:
            if batch and (len(batch) + 1) * len(reading.ids) > tokens:
                yield batch
                batch = []
            batch.append(reading)
        if batch:
            yield batch

    def _collect(
        self,
        reading: Reading,
        states: NDArray[np.float32],
        passages: Sequence[Passage],
        scores: dict[int, PassageScore],
    ) -> None:
        """Run the head on the rows that are wanted, some at a time."""
        collector = RowCollector(reading, passages)
        for start in range(reading.first_row, len(reading.ids), SCORED_ROWS):
            stop = min(start + SCORED_ROWS, len(reading.ids))
            collector.take(self._model.logits(states[start:stop]))
        collector.put(scores)


def _pad(readings: Sequence[Reading]) -> NDArray[np.int64]:
    """Return the ids of all readings, the shorter ones padded at the end, which no row attends to."""
    tokens = np.zeros((len(readings), max(len(reading.ids) for reading in readings)), np.int64)
    for row, reading in zip(tokens, readings, strict=True):
        row[: len(reading.ids)] = reading.ids
    return tokens
