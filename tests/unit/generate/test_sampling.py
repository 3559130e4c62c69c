"""The fast ways to a distribution give what the definition gives, here written down in float64."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baichuan2_tpu.errors import BackendError
from baichuan2_tpu.generate.sampling import (
    Distribution,
    adjust,
    choose,
    distribution,
    draw,
    logprobs,
    penalize,
)
from baichuan2_tpu.generate.settings import SamplingSettings

NOTHING_SEEN = np.zeros(0, np.intp)


def defined(scores: NDArray[np.float32], settings: SamplingSettings) -> NDArray[np.float64]:
    """Return the probabilities by the definition: sort everything, one rule after the other."""
    scaled = scores.astype(np.float64) / settings.temperature
    if 0 < settings.top_k < scaled.size:
        scaled[scaled < np.sort(scaled)[-settings.top_k]] = -np.inf
    chances = np.exp(scaled - scaled.max())
    chances /= chances.sum()
    ranked = np.argsort(-chances, kind="stable")
    if settings.top_p < 1:
        before = np.cumsum(chances[ranked]) - chances[ranked]
        dropped = ranked[before >= settings.top_p]
        chances[dropped[dropped != ranked[0]]] = 0
    chances[chances < settings.min_p * chances.max()] = 0
    return chances / chances.sum()


def given_by(choices: Distribution, size: int) -> NDArray[np.float64]:
    chances = np.zeros(size)
    chances[slice(None) if choices.ids is None else choices.ids] = choices.weights
    return chances / chances.sum()


def random_scores(seed: int, size: int, spread: float) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal(size) * spread).astype(np.float32)


usual = st.builds(
    SamplingSettings,
    temperature=st.sampled_from([0.01, 0.3, 0.7, 1.0, 1.7, 50.0]),
    top_k=st.sampled_from([0, 1, 5, 50, 700]),
    top_p=st.sampled_from([0.0, 0.1, 0.513, 0.85, 0.9501, 1.0]),
    min_p=st.sampled_from([0.0, 0.0503, 0.7]),
)


@given(
    settings=usual,
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 2, 100, 129, 5_000]),
    spread=st.sampled_from([0.1, 1.0, 4.0, 20.0]),
)
def test_the_distribution_is_the_defined_one(
    settings: SamplingSettings, seed: int, size: int, spread: float
) -> None:
    scores = random_scores(seed, size, spread)
    found = given_by(distribution(scores, settings), size)
    error = min(np.abs(found - defined(scores, near)).max() for near in (settings, *at_the_limit(settings)))
    assert error < 1e-5, f"largest error {error:.1e}"


def at_the_limit(settings: SamplingSettings) -> Iterator[SamplingSettings]:
    """Yield settings a float32 rounding away, where a token at the limit falls on its other side."""
    for factor in (1 - 1e-6, 1 + 1e-6):
        if 0 < settings.top_p < 1:
            yield replace(settings, top_p=settings.top_p * factor)
        yield replace(settings, min_p=settings.min_p * factor)


@pytest.mark.parametrize(
    "settings",
    [
        SamplingSettings(temperature=0.3, top_k=5, top_p=0.85),
        SamplingSettings(temperature=0.3, top_p=0.85),
        SamplingSettings(top_p=0.95),
        SamplingSettings(top_k=50, min_p=0.1),
        SamplingSettings(),
    ],
)
@pytest.mark.parametrize("spread", [1.0, 2.5])
def test_the_distribution_over_baichuan2s_vocabulary_is_the_defined_one(
    settings: SamplingSettings, spread: float
) -> None:
    scores = random_scores(7, 125_696, spread)
    found, wanted = given_by(distribution(scores, settings), scores.size), defined(scores, settings)
    # Where half the vocabulary is left, float32 may put the last token of 1e-6 on either side.
    assert np.abs(found - wanted).max() < 2e-6
    assert abs(np.count_nonzero(found) - np.count_nonzero(wanted)) <= 2


def test_tokens_equal_to_the_kth_all_stay() -> None:
    found = distribution(np.array([3, 1, 2, 2, 0], np.float32), SamplingSettings(top_k=2))
    assert found.ids is not None
    assert found.ids.tolist() == [0, 2, 3]


def test_of_equal_tokens_the_lowest_ids_make_the_nucleus() -> None:
    weights = distribution(np.zeros(1000, np.float32), SamplingSettings(top_p=0.0105)).weights
    assert np.flatnonzero(weights).tolist() == list(range(11))


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    greedy = SamplingSettings(temperature=0)
    scores = np.array([1, 4, 4, 0], np.float32)
    assert choose(scores, greedy, NOTHING_SEEN, np.random.default_rng(0)) == 1


def test_a_temperature_of_almost_nothing_is_greedy() -> None:
    assert SamplingSettings(temperature=1e-8).is_greedy


def test_a_seen_token_is_penalised_once_and_the_logits_stay() -> None:
    logits = np.array([2, -2, 2, 0], np.float32)
    assert penalize(logits, np.array([0, 1, 0, 1]), 2.0).tolist() == [1, -4, 2, 0]
    assert logits.tolist() == [2, -2, 2, 0]


def test_the_penalty_counts_for_greedy_too() -> None:
    settings = SamplingSettings(temperature=0, repetition_penalty=1.5)
    logits = np.array([3.0, 2.5], np.float32)
    assert choose(logits, settings, np.array([0]), np.random.default_rng(0)) == 1


@given(
    seed=st.integers(0, 2**32),
    size=st.sampled_from([1, 7, 500]),
    presence=st.sampled_from([-2.0, 0.0, 0.5]),
    frequency=st.sampled_from([-0.3, 0.0, 2.0]),
    said=st.integers(0, 60),
    biased=st.integers(0, 5),
)
def test_openais_terms_are_the_defined_ones(
    *, seed: int, size: int, presence: float, frequency: float, said: int, biased: int
) -> None:
    generator = np.random.default_rng(seed)
    logits, answer_ids = random_scores(seed, size, 3.0), generator.integers(0, size, said)
    bias = {int(token): float(generator.integers(-100, 101)) for token in generator.integers(0, size, biased)}
    settings = SamplingSettings(
        presence_penalty=presence, frequency_penalty=frequency, logit_bias=tuple(bias.items())
    )
    # OpenAI: mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, and the bias added.
    counts = np.bincount(answer_ids, minlength=size)
    wanted = logits - counts * frequency - (counts > 0) * presence + [bias.get(j, 0) for j in range(size)]
    before = logits.copy()
    assert np.abs(adjust(logits, answer_ids, settings) - wanted).max() < 1e-4
    assert (logits == before).all()


def test_penalties_of_presence_and_frequency_count_the_answer_alone() -> None:
    logits = np.array([3.0, 2.5, 0.0], np.float32)
    for settings in (
        SamplingSettings(temperature=0, presence_penalty=0.6),
        SamplingSettings(temperature=0, frequency_penalty=0.3),
    ):
        for answered, wanted in ((0, 0), (2, 1)):
            seen = np.array([1, 1, 0, 0])
            assert choose(logits, settings, seen, np.random.default_rng(0), answered=answered) == wanted


def test_a_bias_forces_a_token_or_bans_it() -> None:
    logits = np.array([3, 2, 1], np.float32)
    for bias, wanted in (((2, 100),), 2), (((0, -100),), 1):
        settings = SamplingSettings(logit_bias=bias)
        assert choose(logits, settings, NOTHING_SEEN, np.random.default_rng(0)) == wanted


@pytest.mark.parametrize("size", [3, 1000])
def test_draws_come_as_often_as_their_weights_say(size: int) -> None:
    weights = np.zeros(size)
    weights[[0, 1, size - 1]] = [1, 2, 5]
    generator = np.random.default_rng(3)
    drawn = np.bincount([draw(Distribution(weights), generator) for _ in range(4000)], minlength=size)
    expected = 4000 * weights / weights.sum()
    # Five standard deviations.
    assert (np.abs(drawn - expected) <= 5 * np.sqrt(expected)).all()


def test_a_seed_repeats_the_draws() -> None:
    scores = random_scores(1, 500, 1.0)

    def drawn(seed: int) -> list[int]:
        generator = np.random.default_rng(seed)
        return [choose(scores, SamplingSettings(), NOTHING_SEEN, generator) for _ in range(20)]

    assert drawn(5) == drawn(5) != drawn(6)


@pytest.mark.parametrize("bad", [[1, np.nan, 2], [1, np.inf, 2], [-np.inf] * 3])
@pytest.mark.parametrize(
    "settings", [SamplingSettings(temperature=0), SamplingSettings(), SamplingSettings(top_k=1)]
)
def test_logits_that_are_no_numbers_are_a_fault_not_a_token(
    bad: list[float], settings: SamplingSettings
) -> None:
    logits = np.array(bad, np.float32)
    with pytest.raises(BackendError, match="largest logit"):
        choose(logits, settings, NOTHING_SEEN, np.random.default_rng(0))
    with pytest.raises(BackendError, match="largest logit"):
        logprobs(logits, 0, 0)


def test_a_masked_token_is_never_drawn() -> None:
    logits = np.full(5_000, -np.inf, np.float32)
    logits[[17, 4321]] = 0
    generator = np.random.default_rng(0)
    for settings in (SamplingSettings(), SamplingSettings(top_p=0.9), SamplingSettings(top_k=5)):
        assert {choose(logits, settings, NOTHING_SEEN, generator) for _ in range(50)} <= {17, 4321}


def test_the_largest_float_is_no_overflow() -> None:
    logits = np.array([np.finfo(np.float32).min, 0, 1], np.float32)
    settings = SamplingSettings(temperature=0.01, repetition_penalty=2.0)
    assert choose(logits, settings, np.array([0]), np.random.default_rng(0)) == 2


@given(seed=st.integers(0, 2**32), size=st.integers(1, 400), count=st.integers(0, 20))
def test_logprobs_are_those_of_the_softmax_before_any_setting(seed: int, size: int, count: int) -> None:
    logits = random_scores(seed, size, 3.0)
    exact = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum())
    own, *top = logprobs(logits, size // 2, count)
    assert own.token_id == size // 2
    assert [item.token_id for item in top] == np.argsort(-logits, kind="stable")[:count].tolist()
    assert all(abs(item.logprob - exact[item.token_id]) < 1e-5 for item in (own, *top))
