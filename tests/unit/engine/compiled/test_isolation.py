"""What one sequence computes reaches no other: not by rows given away, nor by faults, nor by infinities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.compiled import block_loop
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.net_plan import plan_nets
from baichuan2_tpu.errors import DeviceError
from doubles.numpy_device import NumpyDevice, rounded
from models.random_model import float_weights, random_weights
from models.reference import reference_logits

MODEL = random_weights("grouped", 8)
FLOATS = float_weights(MODEL)
OVERFLOWING = 5
"""A token whose values are beyond float16."""

SHARE_ALLOWED = 2e-3
ROWS = 96


def open_engine(*, floats: dict[str, np.ndarray] = FLOATS, **options: Any) -> BmodelEngine:
    options = {"context": ROWS, "stages": (1, 8, 32), "head_rows": (1, 8)} | options
    device = NumpyDevice(MODEL.config, floats, **options)
    embedding = None
    if not options.get("has_embedding"):
        embedding = rounded(floats["model.embed_tokens.weight"], device.dtype)
    return BmodelEngine(device, plan_nets(device.nets), MODEL.config, embedding=embedding, context=64)


def overflowing_weights() -> dict[str, np.ndarray]:
    """Return weights with a token that drives the values of the first layer beyond float16."""
    floats = {name: array.copy() for name, array in FLOATS.items()}
    embedding, norm = "model.embed_tokens.weight", "model.layers.0.input_layernorm.weight"
    floats[embedding][:, 0] = 0
    floats[embedding][OVERFLOWING] = 0
    floats[embedding][OVERFLOWING, 0] = 1
    floats[norm][0] = 1e7  # nothing for tokens without a component there
    return floats


WEIGHTS = overflowing_weights()


def device_of(engine: BmodelEngine) -> NumpyDevice:
    device = engine._device
    assert isinstance(device, NumpyDevice)
    return device


def random_tokens(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(10, MODEL.config.vocabulary_size, count).tolist()


def assert_close(found: np.ndarray, tokens: list[int], floats: dict[str, np.ndarray] = WEIGHTS) -> None:
    expected = reference_logits(MODEL.config, floats, tokens, np.float16)[-len(found) :]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < SHARE_ALLOWED, f"off by {error:.2e} of the largest logit"


FORMS: dict[str, dict[str, Any]] = {
    "own": {},
    "converter": {"form": "converter", "has_embedding": True, "head_rows": (1,)},
    "token": {"head": "token"},
    "sample": {"head": "sample"},
}


@pytest.mark.parametrize("form", ["own", "converter"])
@pytest.mark.parametrize("logit_rows", [0, 1])
def test_a_sequence_that_overflows_gets_nan_and_the_others_their_logits(form: str, logit_rows: int) -> None:
    """A row of infinities made every row of its launch, and of all later ones, no number."""
    engine = open_engine(floats=WEIGHTS, **FORMS[form])
    good, other = random_tokens(7), random_tokens(4, seed=1)
    with engine.open_sequence() as first, engine.open_sequence() as bad, engine.open_sequence() as second:
        engine.forward([Chunk(first, good[:4], 0), Chunk(bad, [11, 12], 0)])
        found = engine.forward(
            [
                Chunk(first, good[4:]),
                Chunk(bad, [13, OVERFLOWING, 14], logit_rows),
                Chunk(second, other, 2),
            ]
        )
        assert np.isnan(found[1]).all()
        assert found[1].shape == (logit_rows, MODEL.config.vocabulary_size)
        assert (first.length, bad.length, second.length) == (7, 5, 4)
        assert_close(found[0], good)
        assert_close(found[2], other)
        found = engine.forward([Chunk(second, [20]), Chunk(bad, [21]), Chunk(first, [22])])
        assert np.isnan(found[1]).all(), "it stays so: what it holds is incomplete"
        assert_close(found[0], [*other, 20])
        assert_close(found[2], [*good, 22])


def test_a_sequence_is_sound_again_without_the_token_that_overflowed() -> None:
    engine = open_engine(floats=WEIGHTS)
    with engine.open_sequence() as sequence, engine.open_sequence() as copy:
        assert np.isnan(engine.forward([Chunk(sequence, [11, 12, OVERFLOWING])])[0]).all()
        copy.copy_prefix(sequence, 2)
        engine.forward([Chunk(sequence, [13], 0)])
        sequence.truncate(0)
        assert_close(engine.forward([Chunk(sequence, [11, 14])])[0], [11, 14])
        # The step that failed computed nothing that could be kept, so its first tokens are not sound either.
        copy.truncate(0)
        engine.forward([Chunk(copy, [11], 0)])
        assert_close(engine.forward([Chunk(copy, [14])])[0], [11, 14])


def test_a_copy_of_what_is_not_sound_is_not_sound() -> None:
    engine = open_engine(floats=WEIGHTS)
    with engine.open_sequence() as sequence, engine.open_sequence() as copy:
        engine.forward([Chunk(sequence, [11, 12], 0)])
        engine.forward([Chunk(sequence, [OVERFLOWING, 13], 0)])
        copy.copy_prefix(sequence, 3)
        assert np.isnan(engine.forward([Chunk(copy, [14])])[0]).all()
        copy.copy_prefix(sequence, 2)
        assert_close(engine.forward([Chunk(copy, [14])])[0], [11, 12, 14])


@pytest.mark.parametrize("head", ["token", "sample"])
def test_a_head_that_hides_what_is_no_number_does_not_hide_the_sequence(head: str) -> None:
    """A head that gives the best token gives some token of rows that are no numbers too."""
    engine, exact = open_engine(floats=WEIGHTS, head=head), open_engine(floats=WEIGHTS)
    good = random_tokens(7)
    with engine.open_sequence() as first, engine.open_sequence() as bad:
        found = engine.forward([Chunk(first, good), Chunk(bad, [OVERFLOWING])])
    with exact.open_sequence() as alone:
        expected = exact.forward([Chunk(alone, good)])[0]
    assert np.isnan(found[1]).all()
    assert found[0].argmax() == expected.argmax()


def test_rows_of_a_sequence_that_overflowed_are_clean_for_the_next() -> None:
    engine = open_engine(floats=WEIGHTS)
    for seed in range(3):
        with engine.open_sequence() as bad:
            engine.forward([Chunk(bad, [*random_tokens(20, seed), OVERFLOWING], 0)])
        tokens = random_tokens(60, seed)
        with engine.open_sequence() as sequence:
            assert_close(engine.forward([Chunk(sequence, tokens, 60)])[0], tokens)
    assert engine.row_use.used == 0


def test_a_fault_in_the_middle_of_an_overflow_leaves_nothing() -> None:
    engine = open_engine(floats=WEIGHTS)
    device, tokens = device_of(engine), random_tokens(9)
    with engine.open_sequence() as good, engine.open_sequence() as bad:
        engine.forward([Chunk(good, tokens[:4], 0)])
        for launches in range(2, 9):
            device.fail_at = len(device.launches) + launches
            with pytest.raises(DeviceError, match="fallen off"):
                engine.forward([Chunk(good, tokens[4:8]), Chunk(bad, [OVERFLOWING])])
            assert (good.length, bad.length, engine.row_use.used) == (4, 0, 4)
        device.fail_at = None
        assert_close(engine.forward([Chunk(good, tokens[4:], 5)])[0], tokens)


def test_a_row_with_the_largest_score_does_not_show_through_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """-1e4 on the score of a hidden row was enough while all rows were those of one conversation."""
    floats = {name: array.copy() for name, array in FLOATS.items()}
    quiet, loud, gap = most_different_tokens(floats)
    for letter in "qk":
        floats[f"model.layers.0.self_attn.{letter}_proj.weight"] *= np.sqrt(3e4 / gap)

    def largest_difference() -> float:
        engine = open_engine(floats=floats)
        with engine.open_sequence() as sequence:
            expected = engine.forward([Chunk(sequence, [quiet] * 9, 9)])[0]
        with engine.open_sequence() as first, engine.open_sequence() as second:
            engine.forward([Chunk(second, [loud] * 25, 0)])
            found = engine.forward([Chunk(first, [quiet] * 9, 9), Chunk(second, [7])])[0]
        return float(np.abs(found - expected).max() / np.abs(expected).max())

    assert largest_difference() < SHARE_ALLOWED
    monkeypatch.setitem(block_loop._MASKED, "float16", np.float16(-1e4))
    assert largest_difference() > 10 * SHARE_ALLOWED, "these scores do not tell one mask from the other"


def most_different_tokens(floats: dict[str, np.ndarray]) -> tuple[int, int, float]:
    """Return a token, and another one with the key that suits its query best against its own: by how much."""
    config = MODEL.config
    states = floats["model.embed_tokens.weight"].astype(np.float64)
    states /= np.sqrt((states**2).mean(axis=1, keepdims=True) + config.norm_eps)
    states *= floats["model.layers.0.input_layernorm.weight"]
    queries, keys = (
        (states @ floats[f"model.layers.0.self_attn.{letter}_proj.weight"].T).reshape(
            len(states), -1, config.head_size
        )
        for letter in "qk"
    )
    keys = np.repeat(keys, config.heads // config.kv_heads, axis=1)
    scores = np.einsum("ahd,bhd->hab", queries, keys) / np.sqrt(config.head_size)
    gaps = (scores - np.einsum("haa->ha", scores)[..., None]).max(axis=0)
    quiet, loud = np.unravel_index(gaps.argmax(), gaps.shape)
    return int(quiet), int(loud), float(gaps.max())
