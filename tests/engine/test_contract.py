"""What every engine promises (engine/base.py), run on each engine there is.

The cpu engine promises the same bits however a prompt is cut and whatever else is in the batch. Compiled nets
compute in float16, in an order that depends on the stage and on where rows lie, so theirs differ a little.
Without a simulator their engine is held to it on a device in numpy.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.engine.base import Chunk, Engine
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.net_plan import plan_nets
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.engine.registry import open_engine
from baichuan2_tpu.errors import BackendError, ContextLengthError, RequestError
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.toolchain import find_simulator
from doubles.numpy_device import NumpyDevice, rounded
from doubles.sail_double import install_sail
from models.random_model import float_weights, random_weights
from models.tiny_bundle import TinyBundles

CONTEXT = 300

MODELS: list[tuple[str, Literal[4, 8], str]] = [
    ("rope", 4, "fast"),
    ("alibi", 8, "fast"),
    ("grouped", 4, "fast"),
    ("grouped", 8, "exact"),
]
CPU_OPENERS: dict[str, Callable[[], Engine]] = {
    f"cpu-{shape}-{bits}-{mode}": lambda shape=shape, bits=bits, mode=mode: CpuEngine(
        random_weights(shape, bits), context=CONTEXT, threads=2, is_exact=mode == "exact"
    )
    for shape, bits, mode in MODELS
}

DEVICES = ("simulator", "sail")


def numpy_engine(shape: str, **options: Any) -> Engine:
    """Open the engine of compiled nets on a device in numpy."""
    weights = random_weights(shape, 8)
    floats = float_weights(weights)
    device = NumpyDevice(weights.config, floats, context=384, **options)
    embedding = None
    if not options.get("has_embedding"):
        embedding = rounded(floats["model.embed_tokens.weight"], device.dtype)
    return BmodelEngine(device, plan_nets(device.nets), weights.config, embedding=embedding, context=CONTEXT)


NUMPY_OPENERS: dict[str, Callable[[], Engine]] = {
    "numpy-rope": lambda: numpy_engine(
        "grouped", stages=(1, 16, 64), histories=(64, 128), head_rows=(1, 16), layers_per_net=2
    ),
    "numpy-alibi": lambda: numpy_engine("alibi", stages=(1, 16), histories=(64,), has_embedding=True),
    "numpy-converter": lambda: numpy_engine("grouped", stages=(1, 300), form="converter", has_embedding=True),
}

SHARE_ALLOWED = 0.02
"""Largest difference between two ways to feed compiled nets, as a share of the logits' spread."""


@dataclass(frozen=True)
class Contender:
    """An engine under the contract, what opens another one like it, and whether its logits are exact."""

    engine: Engine
    open_another: Callable[[], Engine]
    is_exact: bool
    whole: np.ndarray
    """Logits of every row of ``TOKENS``, all fed at once. Shapes: (T, V)."""

    def assert_same(self, found: np.ndarray, expected: np.ndarray) -> None:
        """Compare logits, bit by bit where that was promised."""
        if self.is_exact:
            np.testing.assert_array_equal(found, expected)
            return
        assert found.shape == expected.shape
        error = np.abs(found - expected).max(initial=0) / self.whole.std()
        assert error < SHARE_ALLOWED, f"largest difference {error:.4f} of the spread"


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 320, count).tolist()


TOKENS = random_tokens(20)


def whole_logits(engine: Engine, tokens: list[int]) -> np.ndarray:
    with engine.open_sequence() as sequence:
        return engine.forward([Chunk(sequence, tokens, len(tokens))])[0]


@pytest.fixture(scope="module", params=CPU_OPENERS)
def cpu_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    with CPU_OPENERS[request.param]() as opened:
        yield opened


@pytest.fixture(scope="module", params=[*CPU_OPENERS, *NUMPY_OPENERS, *DEVICES])
def contender(request: pytest.FixtureRequest) -> Iterator[Contender]:
    is_cpu = request.param in CPU_OPENERS
    with pytest.MonkeyPatch.context() as patch:
        openers = CPU_OPENERS | NUMPY_OPENERS
        open_another = openers.get(request.param) or device_opener(request, patch)
        with open_another() as engine:
            yield Contender(engine, open_another, is_exact=is_cpu, whole=whole_logits(engine, TOKENS))


def device_opener(request: pytest.FixtureRequest, patch: pytest.MonkeyPatch) -> Callable[[], Engine]:
    """Return what opens the tiny bundle on a simulated device, through libbmrt or through SAIL's double."""
    tiny_bundle: TinyBundles = request.getfixturevalue("tiny_bundle")
    bundle = tiny_bundle(4).folder
    if request.param == "sail":
        install_sail(patch, find_simulator())
    return lambda: open_engine(identify(bundle), engine=request.param)


@pytest.fixture
def engine(contender: Contender) -> Engine:
    return contender.engine


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, CONTEXT - 1), max_size=6, unique=True))
def test_cpu_logits_do_not_depend_on_how_a_prompt_is_cut(cpu_engine: Engine, cuts: list[int]) -> None:
    tokens = random_tokens(CONTEXT)
    edges = [0, *sorted(cuts), CONTEXT]
    with cpu_engine.open_sequence() as sequence:
        parts = [
            cpu_engine.forward([Chunk(sequence, tokens[start:end], end - start)])[0]
            for start, end in itertools.pairwise(edges)
        ]
    np.testing.assert_array_equal(np.concatenate(parts), whole_logits(cpu_engine, tokens))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_cpu_logits_do_not_depend_on_the_rest_of_the_batch(
    cpu_engine: Engine, lengths: list[int], seed: int
) -> None:
    prompts = [random_tokens(length, seed + i) for i, length in enumerate(lengths)]
    sequences = [cpu_engine.open_sequence() for _ in prompts]
    batch = [Chunk(one, tokens, len(tokens)) for one, tokens in zip(sequences, prompts, strict=True)]
    together = cpu_engine.forward(batch)
    decoded = cpu_engine.forward([Chunk(one, [7]) for one in sequences])
    for tokens, logits, after in zip(prompts, together, decoded, strict=True):
        alone = whole_logits(cpu_engine, [*tokens, 7])
        np.testing.assert_array_equal(logits, alone[:-1])
        np.testing.assert_array_equal(after, alone[-1:])
    for sequence in sequences:
        sequence.close()


def test_logits_come_for_the_last_rows_asked_for(contender: Contender, engine: Engine) -> None:
    vocabulary = engine.config.vocabulary_size
    assert contender.whole.shape == (20, vocabulary)
    assert contender.whole.dtype == np.float32
    with engine.open_sequence() as sequence:
        assert engine.forward([Chunk(sequence, TOKENS[:5], 0)])[0].shape == (0, vocabulary)
        last = engine.forward([Chunk(sequence, TOKENS[5:], 3)])[0]
    contender.assert_same(last, contender.whole[-3:])


def test_tokens_decoded_one_by_one_are_those_of_a_prompt(contender: Contender, engine: Engine) -> None:
    with engine.open_sequence() as sequence:
        engine.forward([Chunk(sequence, TOKENS[:17], 0)])
        rows = [engine.forward([Chunk(sequence, [token])])[0] for token in TOKENS[17:]]
        assert sequence.length == 20
    contender.assert_same(np.concatenate(rows), contender.whole[17:])


def test_two_interleaved_sequences_do_not_see_each_other(contender: Contender, engine: Engine) -> None:
    with engine.open_sequence() as first, engine.open_sequence() as second:
        engine.forward([Chunk(first, TOKENS[:15], 0), Chunk(second, random_tokens(9, seed=3), 0)])
        engine.forward([Chunk(second, [5], 0)])
        before, _ = engine.forward([Chunk(first, TOKENS[15:18]), Chunk(second, [6])])
        engine.forward([Chunk(second, TOKENS[:2], 0)])
        after = engine.forward([Chunk(first, TOKENS[18:])])[0]
        assert (first.length, second.length) == (20, 13)
    contender.assert_same(before, contender.whole[17:18])
    contender.assert_same(after, contender.whole[19:])


def test_a_sequence_given_back_leaves_nothing_to_the_next(contender: Contender, engine: Engine) -> None:
    with engine.open_sequence() as other:
        engine.forward([Chunk(other, random_tokens(30, seed=2), 0)])
    with engine.open_sequence() as sequence:
        contender.assert_same(engine.forward([Chunk(sequence, TOKENS, 1)])[0], contender.whole[-1:])


def test_truncate_forgets_what_came_later(contender: Contender, engine: Engine) -> None:
    with engine.open_sequence() as sequence:
        engine.forward([Chunk(sequence, [*TOKENS[:12], *random_tokens(20, seed=1)], 0)])
        sequence.truncate(12)
        assert sequence.length == 12
        rest = engine.forward([Chunk(sequence, TOKENS[12:], 1)])[0]
    contender.assert_same(rest, contender.whole[-1:])


def test_a_prompt_with_a_known_beginning_feeds_only_what_is_new(contender: Contender, engine: Engine) -> None:
    with TrackedSequence(engine) as sequence:
        sequence.feed([*TOKENS[:16], 1, 2, 3])
        assert sequence.keep_prefix(TOKENS) == 16
        contender.assert_same(sequence.feed(TOKENS[16:]), contender.whole[-1:])


def test_a_copy_continues_as_the_original_and_apart_from_it(contender: Contender, engine: Engine) -> None:
    with engine.open_sequence() as first, engine.open_sequence() as second:
        engine.forward([Chunk(first, TOKENS[:15], 0), Chunk(second, TOKENS[:3], 0)])
        assert engine.can_copy
        second.copy_prefix(first, 13)
        assert (first.length, second.length) == (15, 13)
        engine.forward([Chunk(second, random_tokens(9, seed=3), 0)])
        contender.assert_same(engine.forward([Chunk(first, TOKENS[15:])])[0], contender.whole[-1:])
        second.truncate(13)
        contender.assert_same(engine.forward([Chunk(second, TOKENS[13:])])[0], contender.whole[-1:])


def test_copying_more_than_there_is_or_a_sequence_to_itself_is_refused(engine: Engine) -> None:
    with engine.open_sequence() as first, engine.open_sequence() as second:
        engine.forward([Chunk(first, TOKENS, 0)])
        with pytest.raises(RequestError, match="cannot truncate to 21 tokens"):
            second.copy_prefix(first, 21)
        with pytest.raises(RequestError, match="only another sequence of this engine"):
            first.copy_prefix(first, 1)


def test_truncating_beyond_the_end_is_refused(engine: Engine) -> None:
    with engine.open_sequence() as sequence:
        engine.forward([Chunk(sequence, [1, 2, 3], 0)])
        with pytest.raises(RequestError, match="cannot truncate to 4 tokens: the sequence holds 3"):
            sequence.truncate(4)
        with pytest.raises(RequestError, match="cannot truncate to -1 tokens"):
            sequence.truncate(-1)


def test_a_batch_with_one_wrong_chunk_changes_no_sequence(engine: Engine) -> None:
    context = engine.max_context
    with engine.open_sequence() as good, engine.open_sequence() as full:
        engine.forward([Chunk(full, random_tokens(context), 0)])
        with pytest.raises(
            ContextLengthError, match=f"{context + 1} tokens do not fit: the context holds {context}"
        ):
            engine.forward([Chunk(good, [1, 2]), Chunk(full, [3])])
        assert (good.length, full.length) == (0, context)


def test_wrong_chunks_are_refused(engine: Engine) -> None:
    vocabulary = engine.config.vocabulary_size
    with engine.open_sequence() as sequence:
        for chunks, message in [
            ([Chunk(sequence, [])], "no tokens"),
            (
                [Chunk(sequence, [vocabulary])],
                f"token {vocabulary} is outside the vocabulary of {vocabulary}",
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
        CPU_OPENERS["cpu-rope-4-fast"]() as other,
        other.open_sequence() as sequence,
        pytest.raises(RequestError, match="another engine"),
    ):
        engine.forward([Chunk(sequence, [1])])


def test_a_closed_engine_says_so(contender: Contender) -> None:
    engine = contender.open_another()
    sequence = engine.open_sequence()
    engine.close()
    engine.close()
    with pytest.raises(BackendError, match="closed"):
        engine.open_sequence()
    with pytest.raises(BackendError, match="closed"):
        engine.forward([Chunk(sequence, [1])])
