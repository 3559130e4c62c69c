"""Compiled nets give the reference's logits, for every form of them and whoever else is in the step."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from baichuan2_tpu.engine.base import Chunk, RowUse
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.net_plan import plan_nets
from baichuan2_tpu.errors import BackendError, DeviceError, RequestError
from doubles.numpy_device import NumpyDevice, rounded
from models.random_model import float_weights, random_weights
from models.reference import reference_logits

CONTEXT = 64
ROWS = 160
MODELS = {name: random_weights(name, 8) for name in ("grouped", "alibi")}
FLOATS = {name: float_weights(model) for name, model in MODELS.items()}
VOCABULARY = MODELS["grouped"].config.vocabulary_size

TOLERANCES = {"float16": 2e-3, "bfloat16": 3e-2}

FORMS: dict[str, dict[str, Any]] = {
    "own": {},
    "own-embedding": {"has_embedding": True},
    "own-many-stages": {"stages": (1, 4, 32), "histories": (16, 64), "head_rows": (1, 4)},
    "own-two-layers-per-net": {"layers_per_net": 2, "histories": (64,)},
    "converter": {"form": "converter", "has_embedding": True},
    "converter-embedding-on-the-host": {"form": "converter"},
    "bfloat16": {"dtype": "bfloat16"},
    "alibi": {"model": "alibi", "layers_per_net": 2, "histories": (32,)},
}


def open_engine(
    *, context: int = CONTEXT, rows: int = ROWS, model: str = "grouped", **options: Any
) -> BmodelEngine:
    config, floats = MODELS[model].config, FLOATS[model]
    device = NumpyDevice(config, floats, context=rows, **options)
    embedding = None
    if not options.get("has_embedding"):
        embedding = rounded(floats["model.embed_tokens.weight"], device.dtype)
    return BmodelEngine(device, plan_nets(device.nets), config, embedding=embedding, context=context)


@pytest.fixture(params=FORMS)
def engine(request: pytest.FixtureRequest) -> BmodelEngine:
    return open_engine(**FORMS[request.param])


def device_of(engine: BmodelEngine) -> NumpyDevice:
    device = engine._device
    assert isinstance(device, NumpyDevice)
    return device


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, count).tolist()


def reference(engine: BmodelEngine, tokens: list[int]) -> np.ndarray:
    model = "alibi" if engine.config.position == "alibi" else "grouped"
    return reference_logits(engine.config, FLOATS[model], tokens, np.float16)


def assert_close(engine: BmodelEngine, found: np.ndarray, expected: np.ndarray) -> None:
    # States are rounded between layers: by 2**-11 of the largest, or 2**-8, a few times over.
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < TOLERANCES[device_of(engine).dtype], f"off by {error:.2e} of the largest logit"


def whole_logits(engine: BmodelEngine, tokens: list[int]) -> np.ndarray:
    with engine.open_sequence() as sequence:
        return engine.forward([Chunk(sequence, tokens, len(tokens))])[0]


@pytest.mark.parametrize("cuts", [[64], [1, 63], [20, 1, 1, 30, 12], [60, 4]])
def test_logits_are_the_references_however_tokens_are_cut(engine: BmodelEngine, cuts: list[int]) -> None:
    tokens = random_tokens(CONTEXT)
    expected = reference(engine, tokens)
    done = 0
    with engine.open_sequence() as sequence:
        for count in cuts:
            found = engine.forward([Chunk(sequence, tokens[done : done + count], count)])[0]
            assert_close(engine, found, expected[done : done + count])
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


def test_a_second_prompt_goes_over_the_first_again_where_that_takes_less_time() -> None:
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
        assert engine.row_use.used == 36, "what is computed again takes no second row"
    assert nets == ["embedding", "block_0", "block_1"] + 20 * ["lm_head"]
    expected = reference(engine, [*tokens, 7])
    assert_close(engine, found, expected[10:30])
    assert_close(engine, after, expected[30:])


def test_several_prompts_share_a_launch_of_the_converters_prompt_net() -> None:
    engine = open_engine(form="converter", has_embedding=True, stages=(1, 32))
    prompts = [random_tokens(count, seed=count) for count in (9, 14, 1)]
    sequences = [engine.open_sequence() for _ in prompts]
    found = engine.forward([Chunk(one, tokens) for one, tokens in zip(sequences, prompts, strict=True)])
    assert [net for net, _ in device_of(engine).launches] == ["embedding", "block_0", "block_1"] + 3 * [
        "lm_head"
    ]
    for tokens, logits in zip(prompts, found, strict=True):
        assert_close(engine, logits, reference(engine, tokens)[-1:])


def test_sequences_in_one_step_have_the_logits_of_each_alone(engine: BmodelEngine) -> None:
    prompts = [random_tokens(count, seed=count) for count in (5, 20, 3)]
    sequences = [engine.open_sequence() for _ in prompts]
    together = engine.forward(
        [Chunk(one, tokens, len(tokens)) for one, tokens in zip(sequences, prompts, strict=True)]
    )
    decoded = engine.forward([Chunk(one, [7]) for one in reversed(sequences)])[::-1]
    for tokens, logits, after in zip(prompts, together, decoded, strict=True):
        expected = reference(engine, [*tokens, 7])
        assert_close(engine, logits, expected[:-1])
        assert_close(engine, after, expected[-1:])


def test_rows_behind_a_truncation_are_written_anew(engine: BmodelEngine) -> None:
    tokens, other = random_tokens(24), random_tokens(24, seed=1)
    with engine.open_sequence() as sequence, engine.open_sequence() as rival:
        engine.forward([Chunk(sequence, [*tokens[:10], *other], 0)])
        engine.forward([Chunk(rival, other, 0)])
        sequence.truncate(10)
        engine.forward([Chunk(sequence, tokens[10:20], 0)])
        engine.forward([Chunk(rival, [1], 0)])
        found = engine.forward([Chunk(sequence, tokens[20:], 4)])[0]
    assert_close(engine, found, reference(engine, tokens)[20:])


def test_a_common_prefix_is_owned_by_both_and_outlives_either(engine: BmodelEngine) -> None:
    tokens = random_tokens(30)
    copies = device_of(engine).counts.copies
    with engine.open_sequence() as second:
        with engine.open_sequence() as first:
            engine.forward([Chunk(first, tokens[:20], 0)])
            before = device_of(engine).counts.copies - copies
            second.copy_prefix(first, 15)
            assert (engine.row_use.used, engine.row_use.shared) == (20, 15)
        assert (engine.row_use.used, engine.row_use.shared) == (15, 0)
        assert device_of(engine).counts.copies - copies == before, "nothing is copied"
        with engine.open_sequence() as other:
            engine.forward([Chunk(other, random_tokens(30, seed=1), 0)])
            found = engine.forward([Chunk(second, tokens[15:], 15)])[0]
    assert_close(engine, found, reference(engine, tokens)[15:])
    assert engine.row_use.used == 0


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
        assert engine.row_use.used == 16
    expected = reference(engine, tokens)
    assert_close(engine, found[0], expected[4:])
    assert_close(engine, found[1], expected[5:])


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
    assert engine.row_use == RowUse(total=ROWS, used=0, shared=0)
    assert engine.max_sequences == ROWS
    assert open_engine(context=10).max_context == 10
    with pytest.raises(
        RequestError, match="a context of 161 tokens is not possible: this model allows 1 to 160"
    ):
        open_engine(context=161)


def test_closing_the_engine_closes_its_device_and_its_sequences() -> None:
    engine = open_engine()
    sequence = engine.open_sequence()
    engine.close()
    engine.close()
    assert device_of(engine).is_closed
    with pytest.raises(BackendError, match="engine is closed"):
        engine.forward([Chunk(sequence, [1])])


def test_more_new_tokens_than_free_rows_are_refused_with_both_numbers() -> None:
    engine = open_engine(rows=CONTEXT)
    with engine.open_sequence() as first, engine.open_sequence() as second:
        engine.forward([Chunk(first, random_tokens(60), 0)])
        with pytest.raises(BackendError, match=r"5 new tokens do not fit: of 64 rows .* 4 are free"):
            engine.forward([Chunk(second, random_tokens(5), 0)])
        assert second.length == 0
        engine.forward([Chunk(second, random_tokens(4), 0)])


@pytest.mark.parametrize(("layers_per_net", "nets"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("answers", [1, 3, 16])
def test_a_token_of_many_answers_takes_one_launch_a_net_and_no_copy(
    answers: int, layers_per_net: int, nets: int
) -> None:
    """Two sequences took 128 copies a token, and each had launches and a head of its own."""
    engine = open_engine(layers_per_net=layers_per_net, histories=(64,), head_rows=(1, 16))
    counts = device_of(engine).counts
    sequences = [engine.open_sequence() for _ in range(answers)]
    engine.forward([Chunk(one, random_tokens(5, seed), 0) for seed, one in enumerate(sequences)])
    for _ in range(3):
        before = replace(counts)
        engine.forward([Chunk(one, [7]) for one in sequences])
        assert counts.copies == before.copies
        assert counts.waits - before.waits <= 3
        assert counts.launches - before.launches == nets + 1, "the block nets and the head"


def test_a_launch_reads_the_shortest_history_that_covers_all_rows_in_use() -> None:
    engine = open_engine(histories=(16, 64))
    device, plan = device_of(engine), engine._plan

    def history_read() -> int:
        net, index = device.launches[-1]
        assert net == "block_cache_1"
        return next(stage.history for stage in plan.stages if stage.stage == index)

    with engine.open_sequence() as low, engine.open_sequence() as high:
        engine.forward([Chunk(low, random_tokens(9), 0)])
        assert history_read() == 16
        engine.forward([Chunk(high, random_tokens(30), 0)])
        engine.forward([Chunk(high, [1], 0)])
        assert history_read() == 64
        engine.forward([Chunk(low, [1], 0)])
        assert history_read() == 64, "a net of 16 rows overwrites those behind them, which the other holds"
        low.truncate(9)
        high.truncate(0)
        engine.forward([Chunk(low, [1], 0)])
        assert history_read() == 16


def test_a_step_tells_how_many_tokens_of_prompts_ride_along() -> None:
    engine = open_engine(stages=(1, 2, 16, 64, 128))
    costs = engine._costs
    for answers in (1, 5, 20):
        spare = engine.spare_tokens(answers)
        alone = costs.cheapest(answers, 0)
        assert spare > 0
        assert costs.cheapest(answers + spare, 0) <= 1.2 * alone < costs.cheapest(128, 0)
    assert engine.spare_tokens(128) == 0


@pytest.mark.parametrize("name", ["bmrt-simulator", "bmrt"])
def test_a_simulator_says_once_how_long_a_token_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NumpyDevice, "name", name)
    engine = open_engine()
    notices: list[str] = []
    engine.on_notice = notices.append
    for _ in range(2):
        whole_logits(engine, [1, 2])
    is_simulated = name.endswith("simulator")
    assert len(notices) == is_simulated
    if is_simulated:
        assert re.search(r"for the first of 3 nets: expect about [\d.]+ s for the first token", notices[0])


def test_a_launch_changes_no_row_of_another_sequence() -> None:
    """A net of 16 rows gathered new keys and values behind them, over those of whoever held rows 16 to 23."""
    engine = open_engine(histories=(16, 64))
    assert engine._loop is not None
    tensors = engine._loop.history.tensors
    with engine.open_sequence() as other:
        engine.forward([Chunk(other, random_tokens(30), 0)])
        before = [device_of(engine).download(tensor)[:, other.rows] for tensor in tensors]
        for count in (1, 3, 8):
            with engine.open_sequence() as sequence:
                engine.forward([Chunk(sequence, random_tokens(count))])
        for tensor, expected in zip(tensors, before, strict=True):
            np.testing.assert_array_equal(device_of(engine).download(tensor)[:, other.rows], expected)


def test_how_many_sequences_fit_is_told_by_their_length(engine: BmodelEngine) -> None:
    assert [engine.sequences_of(length) for length in (1, 40, CONTEXT)] == [ROWS, 4, 2]


def test_a_closed_sequence_takes_no_prefix(engine: BmodelEngine) -> None:
    with engine.open_sequence() as source:
        sequence = engine.open_sequence()
        sequence.close()
        with pytest.raises(BackendError, match="closed"):
            sequence.copy_prefix(source, 0)
