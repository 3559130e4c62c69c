"""How far a mean over windows or questions may be off: a bootstrap, the same at every run.

Not here: what is averaged.
Source: B. Efron, R. Tibshirani, An Introduction to the Bootstrap (1993), the percentile interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "interval_json", "interval_text", "ratio_interval"]

_RESAMPLES = 10_000
_CONFIDENCE = 0.95
_SEED = 0
_PICKS_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the true value lies in 95 of 100 cases."""

    low: float
    high: float


def ratio_interval(sums: NDArray[np.float64], counts: NDArray[np.int64]) -> Interval | None:
    """Return the interval of ``sums.sum() / counts.sum()`` when the items are drawn anew; None for one item.

    Items are drawn whole, since what is inside one hangs together. Shapes: both (N,).
    """
    items = len(sums)
    if items < 2:
        return None
    generator = np.random.default_rng(_SEED)
    block = max(1, _PICKS_AT_ONCE // items)
    ratios: list[NDArray[np.float64]] = []
    for start in range(0, _RESAMPLES, block):
        picks = generator.integers(0, items, (min(block, _RESAMPLES - start), items))
        ratios.append(sums[picks].sum(axis=1) / counts[picks].sum(axis=1))
    tail = (1 - _CONFIDENCE) / 2
    low, high = np.quantile(np.concatenate(ratios), (tail, 1 - tail))
    return Interval(float(low), float(high))


def interval_text(interval: Interval | None, form: str, unit: str = "") -> str:
    """Write an interval for a reader; a blank for none."""
    return "" if interval is None else f"{interval.low:{form}} to {interval.high:{form}}{unit}"


def interval_json(interval: Interval | None) -> list[float] | None:
    """Return an interval as JSON has it."""
    return None if interval is None else [interval.low, interval.high]
