"""Pure functions from logits to a token.

The order is Hugging Face's: repetition penalty, temperature, top_k, top_p, min_p; what OpenAI adds to logits
comes behind the repetition penalty, which multiplies them. No setting sorts the whole vocabulary: on 2 cores
at 125,696 logits each usual setting takes 0.1 to 0.9 ms; a sort alone takes 5.
Not here: the loop over tokens (``loop``), checking settings (``settings``).
Source: ``logits_process.py`` of transformers 4.4x; OpenAI's API reference on penalties and ``logit_bias``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.errors import BackendError
from baichuan2_tpu.generate.settings import SamplingSettings

__all__ = ["Distribution", "TokenLogprob", "adjust", "choose", "distribution", "draw", "logprobs", "penalize"]

Floats = NDArray[np.float32] | NDArray[np.float64]

# Columns of a block of the vocabulary: 982 blocks of Baichuan2's 125,696.
_BLOCK = 128

# Most nuclei of a trained model are smaller; larger ones are found through a histogram.
_SMALL_NUCLEUS = 512

# Bins of the histogram: 1/64 of a natural logarithm wide, 64 of them deep; a weight below e^-64 is no mass.
_BINS_PER_UNIT = 64
_LAST_BIN = 64 * _BINS_PER_UNIT - 1

# Tokens counted at a time, so that their bins stay in the cache.
_PIECE = 8192


@dataclass(frozen=True, slots=True)
class Distribution:
    """How likely each token is.

    Shapes: ``weights`` (K,); a token's probability is its weight divided by their sum. ``ids`` (K,) names the
    tokens; None when K is the vocabulary.
    """

    weights: Floats
    ids: NDArray[np.intp] | None = None


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the natural logarithm of its probability."""

    token_id: int
    logprob: float


def choose(
    logits: NDArray[np.float32],
    settings: SamplingSettings,
    seen_ids: NDArray[np.intp],
    generator: np.random.Generator,
    *,
    answered: int = 0,
) -> int:
    """Return the next token: the most likely one (of equals the lowest id) when greedy, else a drawn one.

    Shapes: logits (V,); ``seen_ids`` holds prompt and answer so far, the last ``answered`` ids the answer.
    Raises: BackendError when the logits are not numbers.
    """
    scores = penalize(logits, seen_ids, settings.repetition_penalty)
    scores = adjust(scores, seen_ids[seen_ids.size - answered :], settings)
    if settings.is_greedy:
        best = int(scores.argmax())
        _check_peak(float(scores[best]))
        return best
    return draw(distribution(scores, settings), generator)


@np.errstate(over="ignore")
def penalize(logits: NDArray[np.float32], seen_ids: NDArray[np.intp], penalty: float) -> NDArray[np.float32]:
    """Return logits in which every token of ``seen_ids`` is made less likely, however often it was seen."""
    if penalty == 1.0 or seen_ids.size == 0:
        return logits
    scores = logits.copy()
    seen = scores[seen_ids]
    scores[seen_ids] = np.where(seen > 0, seen / penalty, seen * penalty)
    return scores


def adjust(
    scores: NDArray[np.float32], answer_ids: NDArray[np.intp], settings: SamplingSettings
) -> NDArray[np.float32]:
    """Return scores with OpenAI's terms: the biases, less what each token of the answer is penalised.

    A token that is ``n`` times in the answer loses ``presence_penalty + n * frequency_penalty``.
    """
    presence, frequency = settings.presence_penalty, settings.frequency_penalty
    is_penalized = answer_ids.size > 0 and (presence != 0 or frequency != 0)
    if not (is_penalized or settings.logit_bias):
        return scores
    scores = scores.copy()
    if is_penalized:
        used, counts = np.unique(answer_ids, return_counts=True)
        scores[used] -= presence + frequency * counts
    if settings.logit_bias:
        ids, biases = zip(*settings.logit_bias, strict=True)
        np.add.at(scores, np.array(ids), np.array(biases, np.float32))
    return scores


@np.errstate(over="ignore")
def distribution(scores: NDArray[np.float32], settings: SamplingSettings) -> Distribution:
    """Return what temperature, top_k, top_p and min_p leave of the scores.

    Of tokens equal to the k-th, all stay. The nucleus is the fewest most likely tokens that hold ``top_p`` of
    the mass that top_k left. Without top_k, mass is summed from float32 weights.

    Raises: BackendError when the scores are not numbers.
    """
    peak = float(scores.max())
    _check_peak(peak)
    ids = _largest(scores, settings.top_k) if 0 < settings.top_k < scores.size else None
    candidates: Floats = scores if ids is None else scores[ids].astype(np.float64)
    exponents = candidates - peak
    np.divide(exponents, settings.temperature, out=exponents)
    weights = np.exp(exponents)
    if settings.top_p < 1:
        _cut_to_nucleus(exponents, weights, settings.top_p)
    if settings.min_p > 0:
        # The most likely token has weight 1.
        weights *= weights >= settings.min_p
    return Distribution(weights, ids)


def draw(choices: Distribution, generator: np.random.Generator) -> int:
    """Return one token id at random."""
    # First a block, then a token of it: 5 times as fast as one running sum over the vocabulary.
    starts = np.arange(0, choices.weights.size, _BLOCK)
    start = _BLOCK * _pick(np.add.reduceat(choices.weights, starts), generator)
    place = start + _pick(choices.weights[start : start + _BLOCK], generator)
    return place if choices.ids is None else int(choices.ids[place])


def logprobs(logits: NDArray[np.float32], token_id: int, count: int) -> list[TokenLogprob]:
    """Return the log probability of a token, then those of the ``count`` most likely, before any setting.

    Raises: BackendError when the logits are not numbers.
    """
    peak = float(logits.max())
    _check_peak(peak)
    log_sum = peak + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
    best = _largest(logits, min(count, logits.size)) if count else np.empty(0, np.intp)
    ranked = best[np.argsort(-logits[best], kind="stable")][:count]
    return [TokenLogprob(int(i), float(logits[i]) - log_sum) for i in (token_id, *ranked)]


def _check_peak(peak: float) -> None:
    """Check the largest logit, which NumPy makes NaN when any logit is."""
    if not np.isfinite(peak):
        raise BackendError(
            f"the engine's largest logit is {peak}: this text overflows the model's numbers, change it; "
            "if every text does, the weights are damaged"
        )


def _pick(weights: Floats, generator: np.random.Generator) -> int:
    """Return a place at random, each as likely as its weight."""
    reached = weights.cumsum(dtype=np.float64)
    total = float(reached[-1])
    place = int(reached.searchsorted(generator.random() * total, side="right"))
    # Rounding can carry the product up to the total, where only places of no weight follow.
    return min(place, int(reached.searchsorted(total)))


def _at_least(values: Floats, count: int) -> NDArray[np.intp]:
    """Return, in order, the places of the ``count`` largest values and of some that follow them.

    The values are dealt into blocks. The largest values of the ``count`` best blocks are ``count`` values, so
    the least of them is at most the ``count``-th largest of all.
    """
    blocks = max(values.size // _BLOCK, 4 * count)
    if blocks > values.size // 2:
        bound = np.partition(values, values.size - count)[values.size - count]
    else:
        # Dealt like cards, since a maximum down columns is 3 times as fast as along rows.
        peaks = values[: values.size // blocks * blocks].reshape(-1, blocks).max(axis=0)
        bound = np.partition(peaks, blocks - count)[blocks - count]
    return np.flatnonzero(values >= bound)


def _largest(values: Floats, count: int) -> NDArray[np.intp]:
    """Return, in order, the places of the ``count`` largest values and of those equal to the last of them."""
    places = _at_least(values, count)
    highest = values[places]
    return places[highest >= np.partition(highest, highest.size - count)[highest.size - count]]


def _cut_to_nucleus(exponents: Floats, weights: Floats, top_p: float) -> None:
    """Zero, in place, the weights outside the fewest largest that hold ``top_p`` of the mass.

    Side effect: the exponents are used up. Fresh pages for every token cost more than the arithmetic.
    """
    mass = top_p * float(weights.sum(dtype=np.float64))
    # No weight is above 1, so the sum alone shows most of the large nuclei.
    if mass <= _SMALL_NUCLEUS:
        places = _at_least(exponents, min(_SMALL_NUCLEUS, exponents.size))
        if float(weights[places].sum(dtype=np.float64)) >= mass:
            _keep(weights, _heaviest(places, -exponents[places], weights, mass), 0)
            return
    _cut_to_large_nucleus(exponents, weights, mass)


def _cut_to_large_nucleus(exponents: Floats, weights: Floats, mass: float) -> None:
    """Find the bin of weights in which ``mass`` is reached, and sort that bin only."""
    depths = exponents
    depths *= -_BINS_PER_UNIT
    np.minimum(depths, _LAST_BIN, out=depths)
    held = np.zeros(_LAST_BIN + 1)
    for start in range(0, weights.size, _PIECE):
        piece = slice(start, start + _PIECE)
        held += np.bincount(depths[piece].astype(np.intp), weights[piece], _LAST_BIN + 1)
    reached = held.cumsum()
    edge = min(int(reached.searchsorted(mass)), _LAST_BIN)
    before = float(reached[edge] - held[edge])
    is_above = depths < edge
    places = np.flatnonzero((depths < edge + 1) ^ is_above)
    _keep(weights, _heaviest(places, depths[places], weights, mass - before), is_above)


def _heaviest(places: NDArray[np.intp], ranks: Floats, weights: Floats, mass: float) -> NDArray[np.intp]:
    """Return those of ``places`` that together reach ``mass``, the lowest ranks first, at least one."""
    ranked = places[np.argsort(ranks, kind="stable")]
    reached = weights[ranked].cumsum(dtype=np.float64)
    return ranked[: int(reached.searchsorted(mass)) + 1]


def _keep(weights: Floats, places: NDArray[np.intp], others: NDArray[np.bool_] | int) -> None:
    """Multiply, in place, all weights but those at ``places`` by ``others``."""
    kept = weights[places]
    weights *= others
    weights[places] = kept
