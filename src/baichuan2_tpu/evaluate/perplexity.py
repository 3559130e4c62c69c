"""Perplexity of a text, and how much it rises over another model's on the same windows.

Not here: cutting (``scored_text``), logits (the scorers), asking for them (``subject``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.evaluate.bootstrap import Interval, ratio_interval
from baichuan2_tpu.evaluate.passages import PassageScore

__all__ = ["Perplexity", "PerplexityRise"]


@dataclass(frozen=True, slots=True)
class Perplexity:
    """Loss, in nats, and number of scored tokens of every window; the most likely token of every place."""

    losses: NDArray[np.float64]
    counts: NDArray[np.int64]
    best: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Sequence[PassageScore]) -> Perplexity:
        """Take the scores of all windows."""
        return cls(
            np.array([score.loss for score in scores]),
            np.array([len(score.losses) for score in scores], np.int64),
            np.concatenate([score.best for score in scores]),
        )

    @property
    def scored_tokens(self) -> int:
        """Tokens that count."""
        return int(self.counts.sum())

    @property
    def value(self) -> float:
        """The exponential of the mean loss."""
        return math.exp(self.losses.sum() / self.scored_tokens)

    @property
    def interval(self) -> Interval | None:
        """How far the text's choice of windows may carry it."""
        interval = ratio_interval(self.losses, self.counts)
        return interval and Interval(math.exp(interval.low), math.exp(interval.high))

    def rise_over(self, reference: Perplexity) -> PerplexityRise:
        """Compare with another model's on the same windows."""
        differences = self.losses - reference.losses
        interval = ratio_interval(differences, self.counts)
        return PerplexityRise(
            100 * math.expm1(differences.sum() / self.scored_tokens),
            interval and Interval(100 * math.expm1(interval.low), 100 * math.expm1(interval.high)),
            float((self.best == reference.best).mean()),
        )


@dataclass(frozen=True, slots=True)
class PerplexityRise:
    """How much higher one perplexity is than another, and how often both models prefer the same token."""

    percent: float
    interval: Interval | None
    same_choice: float
    """Share of the places at which both have the same most likely token."""
