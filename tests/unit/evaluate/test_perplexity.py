"""Perplexity and its intervals are those of the definition, and the same at every run."""

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.evaluate import Perplexity
from baichuan2_tpu.evaluate.bootstrap import Interval, ratio_interval


def perplexity(losses: NDArray[np.float64], tokens: int = 100) -> Perplexity:
    counts = np.full(len(losses), tokens, np.int64)
    return Perplexity(losses, counts, np.arange(counts.sum()) % 7)


def test_it_is_the_exponential_of_the_mean_loss() -> None:
    found = perplexity(np.array([100 * np.log(8.0), 100 * np.log(2.0)]))
    assert found.value == pytest.approx(4.0)
    assert found.scored_tokens == 200


def test_the_interval_holds_the_rise_and_is_empty_against_itself() -> None:
    reference = perplexity(np.full(20, 200.0))
    worse = perplexity(np.random.default_rng(0).normal(202, 1, 20))
    rise = worse.rise_over(reference)
    assert rise.interval is not None
    assert rise.interval.low < rise.percent < rise.interval.high
    assert rise.percent == pytest.approx(2, abs=0.5)
    assert reference.rise_over(reference).interval == Interval(0, 0)


def test_same_choice_counts_the_places_with_the_same_likeliest_token() -> None:
    one = perplexity(np.full(2, 1.0), tokens=50)
    other = Perplexity(one.losses, one.counts, np.where(np.arange(100) < 25, -1, one.best))
    assert one.rise_over(other).same_choice == 0.75


def test_a_bootstrap_is_the_same_at_every_run() -> None:
    sums = np.random.default_rng(1).normal(5, 1, 50)
    counts = np.full(50, 1, np.int64)
    assert ratio_interval(sums, counts) == ratio_interval(sums, counts)


def test_a_bootstrap_finds_the_interval_of_a_normal_mean() -> None:
    sums = np.random.default_rng(2).normal(5, 1, 400)
    found = ratio_interval(sums, np.ones(400, np.int64))
    assert found is not None
    half = 1.96 * sums.std() / np.sqrt(400)
    assert found.low == pytest.approx(sums.mean() - half, abs=0.01)
    assert found.high == pytest.approx(sums.mean() + half, abs=0.01)


def test_many_items_are_drawn_in_blocks() -> None:
    found = ratio_interval(np.ones(3000), np.full(3000, 2, np.int64))
    assert found == Interval(0.5, 0.5)


def test_one_window_leaves_no_interval() -> None:
    only = perplexity(np.array([200.0]))
    assert only.interval is None
    assert only.rise_over(only).interval is None
