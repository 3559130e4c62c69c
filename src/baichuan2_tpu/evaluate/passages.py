"""Tokens to score, what a model made of them, and the rows of logits between the two.

Not here: who computes the logits (``engine_scorer``, ``float_scorer``), where the tokens come from
(``scored_text``, ``harness_requests``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Passage", "PassageScore", "Progress", "Reading", "RowCollector", "Scorer", "readings_of"]

Progress = Callable[[int, int], None]
"""Called with what is done and what there is to do."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Tokens, of which those from number ``first`` on are scored, each by all that stand before it.

    ``first`` is 1 or more: nothing stands before the first token.
    """

    tokens: tuple[int, ...]
    first: int

    def __post_init__(self) -> None:
        assert 1 <= self.first < len(self.tokens), "a passage scores a token that others stand before"  # noqa: S101


@dataclass(frozen=True, slots=True)
class PassageScore:
    """The loss of every token that is scored, in nats, and the token that was the most likely there.

    Shapes: both (T,).
    """

    losses: NDArray[np.float64]
    best: NDArray[np.int64]

    @property
    def loss(self) -> float:
        """The negative log likelihood of all of them together."""
        return float(self.losses.sum())

    def is_greedy(self, passage: Passage) -> bool:
        """Tell whether always taking the most likely token would have written them."""
        return bool((self.best == passage.tokens[passage.first :]).all())


class Scorer(Protocol):
    """Something that scores passages."""

    @property
    def max_context(self) -> int:
        """Tokens that can stand before a scored one."""
        ...

    def score(self, passages: Sequence[Passage], on_progress: Progress | None = None) -> list[PassageScore]:
        """Score every passage, and return the scores in the order of the passages.

        Raises: ContextLengthError for a passage that is too long.
        """
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Ids to be read once for all passages that differ in their last token alone: the choices A, B, C, D.

    A passage's last token is scored and never read. ``places`` are the passages' in the caller's list.
    """

    ids: tuple[int, ...]
    first: int
    places: tuple[int, ...]

    @property
    def first_row(self) -> int:
        """The first id after which logits are needed."""
        return self.first - 1

    def rows_until(self, start: int, stop: int) -> int:
        """Return how many rows of logits are needed at the end of a chunk of ids ``start`` to ``stop``."""
        return max(0, stop - max(start, self.first_row))


def readings_of(passages: Sequence[Passage]) -> list[Reading]:
    """Return what is to be read, sorted so that equal beginnings stand next to each other."""
    places: dict[tuple[tuple[int, ...], int], list[int]] = {}
    for place, passage in enumerate(passages):
        places.setdefault((passage.tokens[:-1], passage.first), []).append(place)
    return [Reading(ids, first, tuple(places[ids, first])) for ids, first in sorted(places)]


class RowCollector:
    """Takes the rows of one reading as they come, and makes scores for its passages of them."""

    def __init__(self, reading: Reading, passages: Sequence[Passage]) -> None:
        self._reading = reading
        self._targets = [
            np.array(passages[place].tokens[reading.first :], np.int64) for place in reading.places
        ]
        self._losses: list[list[NDArray[np.float64]]] = [[] for _ in reading.places]
        self._best: list[NDArray[np.int64]] = []
        self._taken = 0

    def take(self, rows: NDArray[np.float32]) -> None:
        """Take the next rows. Shapes: (T, V)."""
        span = slice(self._taken, self._taken + len(rows))
        peaks = rows.max(axis=1, keepdims=True)
        shifted = rows - peaks
        # Summed in float64: the tail of a vocabulary of 125,696 is many small terms.
        log_sums = np.log(np.exp(shifted).sum(axis=1, dtype=np.float64))
        for losses, targets in zip(self._losses, self._targets, strict=True):
            losses.append(log_sums - shifted[np.arange(len(rows)), targets[span]])
        self._best.append(rows.argmax(axis=1))
        self._taken += len(rows)

    def put(self, scores: dict[int, PassageScore]) -> None:
        """Put the score of every passage under its place, once all rows were taken."""
        best = np.concatenate(self._best)
        for place, losses in zip(self._reading.places, self._losses, strict=True):
            scores[place] = PassageScore(np.concatenate(losses), best)
