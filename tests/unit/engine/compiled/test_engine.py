"""The block loop gives the reference's logits, for every form of the nets and whoever else takes a turn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.net_plan import plan_nets
from baichuan2_tpu.errors import BackendError, DeviceError, RequestError
from doubles.numpy_device import NumpyDevice, rounded
from models.random_model import float_weights, random_weights
from models.reference import reference_logits

CONTEXT = 64
MODEL = random_weights("grouped", 8)
FLOATS = float_weights(MODEL)
VOCABULARY = MODEL.config.vocabulary_size

TOLERANCES = {"float16": 2e-3, "bfloat16": 3e-2}

FORMS: dict[str, dict[str, Any]] = {
    "own": {},
    "own-embedding": {"has_embedding": True},
    "own-many-stages": {"stages": (1, 4, 32)},
    "converter": {"form": "converter", "has_embedding": True},
    "converter-embedding-on-the-host": {"form": "converter"},
    "bfloat16": {"dtype": "bfloat16"},
    "tells-no-memory": {"free_bytes": None},
    "no-room-for-another-sequence": {"free_bytes": 4096},
}


def open_engine(context: int | None = None, **options: Any) -> BmodelEngine:
    device = NumpyDevice(MODEL.config, FLOATS, context=CONTEXT, **options)
    embedding = None
    if not options.get("has_embedding"):
        embedding = rounded(FLOATS["model.embed_tokens.weight"], device.dtype)
    return BmodelEngine(device, plan_nets(device.nets), MODEL.config, embedding=embedding, context=context)


@pytest.fixture(params=FORMS)
def engine(request: pytest.FixtureRequest) -> BmodelEngine:
    return open_engine(**FORMS[request.param])


def device_of(engine: BmodelEngine) -> NumpyDevice:
    device = engine._device
    assert isinstance(device, NumpyDevice)
    return device


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def whole_logits(engine: BmodelEngine, tokens: list[int]) -> np.ndarray:
    with engine.open_sequence() as sequence:
        return engine.forward([Chunk(sequence, tokens, len(tokens))])[0]


@pytest.mark.parametrize("cuts", [[64], [1, 63], [20, 1, 1, 30, 12], [60, 4]])
def test_logits_are_the_references_however_tokens_are_cut(engine: BmodelEngine, cuts: list[int]) -> None:
    tokens = random_tokens(CONTEXT)
    expected = reference_logits(MODEL.config, FLOATS, tokens, np.float16)
    done = 0
    with engine.open_sequence() as sequence:
        for count in cuts:
            found = engine.forward([Chunk(sequence, tokens[done : done + count], count)])[0]
            error = np.abs(found - expected[done : done + count]).max()
            # States are rounded between layers: by 2**-11 of the largest, or 2**-8, a few times over.
            share = TOLERANCES[device_of(engine).dtype]
            assert error < share * np.abs(expected).max(), f"{count} behind {done}: off by {error:.2e}"
            done += count


def test_a_prompt_takes_the_converters_prompt_net_and_later_tokens_the_other() -> None:
    engine = open_engine(form="converter", has_embedding=True)
    with engine.open_sequence() as sequence:
        engine.forward([Chunk(sequence, random_tokens(15), 0)])
        for token in random_tokens(2):
            engine.forward([Chunk(sequence, [token], 0)])
    nets = [net for net, _ in device_of(engine).launches]
    assert nets == ["embedding", "block_0", "block_1"] + 2 * [
        "embedding_cache",
        "block_cache_0",
        "block_cache_1",
    ]


def test_a_second_prompt_goes_over_the_first_again_where_that_takes_fewer_launches() -> None:
    engine = open_engine(form="converter", has_embedding=True, stages=(1, 32))
    tokens = random_tokens(30)
    with engine.open_sequence() as sequence, engine.open_sequence() as rival:
        engine.forward([Chunk(sequence, tokens[:10], 0)])
        engine.forward([Chunk(rival, tokens[:4], 0)])
        launched = len(device_of(engine).launches)
        found = engine.forward([Chunk(sequence, tokens[10:], 20)])[0]
        nets = [net for net, _ in device_of(engine).launches[launched:]]
        engine.forward([Chunk(rival, tokens[4:5], 0)])
        after = engine.forward([Chunk(sequence, [7])])[0]
    assert nets == ["embedding", "block_0", "block_1"] + 20 * ["lm_head"]
    expected = reference_logits(MODEL.config, FLOATS, [*tokens, 7], np.float16)
    np.testing.assert_allclose(found, expected[10:30], atol=0.01)
    np.testing.assert_allclose(after, expected[30:], atol=0.01)


def test_sequences_that_take_turns_have_the_same_bits_as_alone(engine: BmodelEngine) -> None:
    prompts = [random_tokens(count, seed=count) for count in (5, 20, 3)]
    alone = [whole_logits(engine, tokens) for tokens in prompts]
    after = [[*tokens, 7] for tokens in prompts]
    sequences = [engine.open_sequence() for _ in prompts]
    together = engine.forward(
        [Chunk(one, tokens, len(tokens)) for one, tokens in zip(sequences, prompts, strict=True)]
    )
    decoded = engine.forward([Chunk(one, [7]) for one in reversed(sequences)])[::-1]
    for one, logits, expected in zip(sequences, together, alone, strict=True):
        np.testing.assert_array_equal(logits, expected)
        one.truncate(one.length - 1)
    again = engine.forward([Chunk(one, [7]) for one in sequences])
    for tokens, first, second in zip(after, decoded, again, strict=True):
        np.testing.assert_array_equal(first, second)
        with engine.open_sequence() as sequence:
            engine.forward([Chunk(sequence, tokens[:-1], 0)])
            np.testing.assert_array_equal(engine.forward([Chunk(sequence, [7])])[0], first)


def test_rows_behind_a_truncation_are_written_anew_though_they_were_saved(engine: BmodelEngine) -> None:
    tokens, other = random_tokens(24), random_tokens(24, seed=1)
    with engine.open_sequence() as sequence, engine.open_sequence() as rival:
        engine.forward([Chunk(sequence, [*tokens[:10], *other], 0)])
        engine.forward([Chunk(rival, other, 0)])
        sequence.truncate(10)
        engine.forward([Chunk(sequence, tokens[10:20], 0)])
        engine.forward([Chunk(rival, [1], 0)])
        found = engine.forward([Chunk(sequence, tokens[20:], 4)])[0]
        with engine.open_sequence() as fresh:
            for start, stop in ((0, 10), (10, 20)):
                engine.forward([Chunk(fresh, tokens[start:stop], 0)])
            np.testing.assert_array_equal(engine.forward([Chunk(fresh, tokens[20:], 4)])[0], found)


@pytest.mark.parametrize("form", ["own", "converter"])
@pytest.mark.parametrize("launches", [0, 1, 3, 5])
def test_a_fault_of_the_device_leaves_every_sequence_as_it_was(launches: int, form: str) -> None:
    engine = open_engine(form=form)
    device = device_of(engine)
    tokens = random_tokens(8)
    with engine.open_sequence() as first, engine.open_sequence() as second:
        engine.forward([Chunk(first, tokens[:4], 0), Chunk(second, tokens[:5], 0)])
        device.fail_at = len(device.launches) + launches
        with pytest.raises(DeviceError, match="fallen off"):
            engine.forward(
                [Chunk(first, random_tokens(30, seed=2)), Chunk(second, random_tokens(30, seed=3))]
            )
        device.fail_at = None
        assert (first.length, second.length) == (4, 5)
        found = engine.forward([Chunk(first, tokens[4:], 4), Chunk(second, tokens[5:], 3)])
    expected = reference_logits(MODEL.config, FLOATS, tokens, np.float16)
    np.testing.assert_allclose(found[0], expected[4:], atol=0.01)
    np.testing.assert_allclose(found[1], expected[5:], atol=0.01)


def test_a_head_of_one_token_gives_it_alone() -> None:
    engine = open_engine(head="token")
    tokens = random_tokens(6)
    logits = whole_logits(engine, tokens)
    assert engine.candidates == 1
    np.testing.assert_array_equal(np.isfinite(logits).sum(axis=1), 1)
    np.testing.assert_array_equal(logits.argmax(axis=1), whole_logits(open_engine(), tokens).argmax(axis=1))
    assert logits.max() == 0


def test_a_sample_head_gives_the_logits_of_the_best_tokens() -> None:
    engine = open_engine(head="sample")
    tokens = random_tokens(6)
    found, all_logits = whole_logits(engine, tokens), whole_logits(open_engine(), tokens)
    known = np.isfinite(found)
    assert engine.candidates == 64
    np.testing.assert_array_equal(known.sum(axis=1), 64)
    np.testing.assert_array_equal(found[known], all_logits[known])
    assert all_logits[~known].max() <= found.max()


def test_the_engine_says_what_it_can_hold(engine: BmodelEngine) -> None:
    assert (engine.name, engine.max_context) == ("numpy", CONTEXT)
    assert engine.prompt_piece in {16, 32}
    assert open_engine(context=10).max_context == 10
    with pytest.raises(
        RequestError, match="a context of 65 tokens is not possible: this model allows 1 to 64"
    ):
        open_engine(context=65)


def test_closing_the_engine_closes_its_device_and_its_sequences() -> None:
    engine = open_engine()
    sequence = engine.open_sequence()
    engine.close()
    engine.close()
    assert device_of(engine).is_closed
    with pytest.raises(BackendError, match="engine is closed"):
        engine.forward([Chunk(sequence, [1])])
