"""What every engine promises (engine/base.py), run on each engine there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baichuan2_tpu.engine.base import Chunk, Engine
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.errors import BackendError, ContextLengthError, RequestError
from random_model import random_weights

CONTEXT = 300
VOCABULARY = 320

MODELS: list[tuple[str, Literal[4, 8], str]] = [
    ("rope", 4, "fast"),
    ("alibi", 8, "fast"),
    ("grouped", 4, "fast"),
    ("grouped", 8, "exact"),
]
OPENERS: dict[str, Callable[[], Engine]] = {
    f"cpu-{shape}-{bits}-{mode}": lambda shape=shape, bits=bits, mode=mode: CpuEngine(
        random_weights(shape, bits), context=CONTEXT, threads=2, is_exact=mode == "exact"
    )
    for shape, bits, mode in MODELS
}


@pytest.fixture(scope="module", params=OPENERS)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with OPENERS[request.param]() as opened:
        yield opened


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def whole_logits(engine: Engine, tokens: list[int]) -> np.ndarray:
    with engine.open_sequence() as sequence:
        return engine.forward([Chunk(sequence, tokens, len(tokens))])[0]


def test_logits_come_for_the_last_rows_asked_for(engine: Engine) -> None:
    tokens = random_tokens(12)
    whole = whole_logits(engine, tokens)
    assert whole.shape == (12, VOCABULARY)
    with engine.open_sequence() as sequence:
        assert engine.forward([Chunk(sequence, tokens[:5], 0)])[0].shape == (0, VOCABULARY)
        last = engine.forward([Chunk(sequence, tokens[5:], 3)])[0]
    np.testing.assert_array_equal(last, whole[-3:])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, CONTEXT - 1), max_size=6, unique=True))
def test_logits_do_not_depend_on_how_a_prompt_is_cut(engine: Engine, cuts: list[int]) -> None:
    tokens = random_tokens(CONTEXT)
    edges = [0, *sorted(cuts), CONTEXT]
    with engine.open_sequence() as sequence:
        parts = [
            engine.forward([Chunk(sequence, tokens[start:end], end - start)])[0]
            for start, end in itertools.pairwise(edges)
        ]
    np.testing.assert_array_equal(np.concatenate(parts), whole_logits(engine, tokens))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_logits_do_not_depend_on_the_rest_of_the_batch(engine: Engine, lengths: list[int], seed: int) -> None:
    prompts = [random_tokens(length, seed + i) for i, length in enumerate(lengths)]
    sequences = [engine.open_sequence() for _ in prompts]
    batch = [Chunk(one, tokens, len(tokens)) for one, tokens in zip(sequences, prompts, strict=True)]
    together = engine.forward(batch)
    decoded = engine.forward([Chunk(one, [7]) for one in sequences])
    for tokens, logits, after in zip(prompts, together, decoded, strict=True):
        alone = whole_logits(engine, [*tokens, 7])
        np.testing.assert_array_equal(logits, alone[:-1])
        np.testing.assert_array_equal(after, alone[-1:])
    for sequence in sequences:
        sequence.close()


def test_truncate_forgets_what_came_later(engine: Engine) -> None:
    tokens = random_tokens(90)
    with engine.open_sequence() as sequence:
        engine.forward([Chunk(sequence, [*tokens[:30], *random_tokens(100, seed=1)], 0)])
        sequence.truncate(30)
        assert sequence.length == 30
        rest = engine.forward([Chunk(sequence, tokens[30:], 60)])[0]
    np.testing.assert_array_equal(rest, whole_logits(engine, tokens)[30:])


def test_truncating_beyond_the_end_is_refused(engine: Engine) -> None:
    with engine.open_sequence() as sequence:
        engine.forward([Chunk(sequence, [1, 2, 3], 0)])
        with pytest.raises(RequestError, match="cannot truncate to 4 tokens: the sequence holds 3"):
            sequence.truncate(4)
        with pytest.raises(RequestError, match="cannot truncate to -1 tokens"):
            sequence.truncate(-1)


def test_a_batch_with_one_wrong_chunk_changes_no_sequence(engine: Engine) -> None:
    with engine.open_sequence() as good, engine.open_sequence() as full:
        engine.forward([Chunk(full, random_tokens(CONTEXT), 0)])
        with pytest.raises(
            ContextLengthError, match=f"{CONTEXT + 1} tokens do not fit: the context holds {CONTEXT}"
        ):
            engine.forward([Chunk(good, [1, 2]), Chunk(full, [3])])
        assert (good.length, full.length) == (0, CONTEXT)


def test_wrong_chunks_are_refused(engine: Engine) -> None:
    with engine.open_sequence() as sequence:
        for chunks, message in [
            ([Chunk(sequence, [])], "no tokens"),
            (
                [Chunk(sequence, [VOCABULARY])],
                f"token {VOCABULARY} is outside the vocabulary of {VOCABULARY}",
            ),
            ([Chunk(sequence, [-1])], "token -1 is outside"),
            ([Chunk(sequence, [1]), Chunk(sequence, [2])], "appears twice"),
            ([Chunk(sequence, [1], 2)], "2 rows of logits"),
        ]:
            with pytest.raises(RequestError, match=message):
                engine.forward(chunks)
        assert sequence.length == 0


def test_a_closed_sequence_cannot_be_used(engine: Engine) -> None:
    sequence = engine.open_sequence()
    sequence.close()
    sequence.close()
    with pytest.raises(BackendError, match="closed"):
        engine.forward([Chunk(sequence, [1])])


def test_more_sequences_than_allowed_are_refused(engine: Engine) -> None:
    sequences = [engine.open_sequence() for _ in range(engine.max_sequences)]
    with pytest.raises(BackendError, match=f"{engine.max_sequences} sequences are open"):
        engine.open_sequence()
    sequences.pop().close()
    engine.open_sequence().close()
    for sequence in sequences:
        sequence.close()


def test_a_sequence_of_another_engine_is_refused(engine: Engine) -> None:
    with (
        OPENERS["cpu-rope-4-fast"]() as other,
        other.open_sequence() as sequence,
        pytest.raises(RequestError, match="another engine"),
    ):
        engine.forward([Chunk(sequence, [1])])


def test_a_closed_engine_says_so() -> None:
    engine = OPENERS["cpu-rope-4-fast"]()
    sequence = engine.open_sequence()
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.open_sequence()
    with pytest.raises(BackendError, match="closed"):
        engine.forward([Chunk(sequence, [1])])
