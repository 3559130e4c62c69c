"""What the benchmark scripts compute themselves: losses, ratios, plain rounding, the float model."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.artifact import NetCost
from baichuan2_tpu.checkpoint.floats import FloatCheckpoint
from baichuan2_tpu.checkpoint.gptq import dequantize
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.float_model import FloatModel
from reference import reference_logits
from tiny_checkpoint import float_weights, rope_config, write_llama_safetensors

TOKENS = list(range(3, 80))

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def checkpoint(tmp_path: Path) -> FloatCheckpoint:
    config = rope_config()
    return FloatCheckpoint.open(write_llama_safetensors(tmp_path, config))


@pytest.fixture
def perplexity() -> ModuleType:
    return importlib.import_module("perplexity")


def uniform(tokens: list[int]) -> Iterator[NDArray[np.float32]]:
    """Yield logits of 8 equally likely tokens, three rows at a time."""
    for start in range(0, len(tokens), 3):
        yield np.zeros((len(tokens[start : start + 3]), 8), np.float32)


def test_equally_likely_tokens_have_the_vocabulary_as_perplexity(perplexity: ModuleType) -> None:
    text = perplexity.Text(tokens=[1, 2, 3, 4, 5, 6, 7] * 4, window=7, stride=7)
    score = perplexity.score(uniform, text)
    assert score.counts.tolist() == [6, 6, 6, 6]
    assert score.perplexity == pytest.approx(8.0)


def test_overlapping_windows_count_every_token_once(perplexity: ModuleType) -> None:
    text = perplexity.Text(tokens=list(range(8)) * 2, window=8, stride=4)
    assert perplexity.score(uniform, text).counts.tolist() == [7, 4, 4]


def test_a_row_is_judged_by_the_token_that_follows(perplexity: ModuleType) -> None:
    tokens = [3, 1, 4, 1, 5]

    def knowing(window: list[int]) -> Iterator[NDArray[np.float32]]:
        logits = np.full((len(window), 8), -50, np.float32)
        logits[np.arange(len(window) - 1), window[1:]] = 50
        yield from np.split(logits, [2])

    assert perplexity.window_loss(knowing, tokens, 1) == pytest.approx(0.0)


def test_the_interval_holds_the_rise_and_is_empty_against_itself(perplexity: ModuleType) -> None:
    counts = np.full(20, 100)
    reference = perplexity.Score(np.full(20, 200.0), counts)
    worse = perplexity.Score(np.random.default_rng(0).normal(202, 1, 20), counts)
    row = perplexity.compared(worse, reference)
    assert row["rise_percent_low"] < row["rise_percent"] < row["rise_percent_high"]
    assert row["rise_percent"] == pytest.approx(2, abs=0.5)
    assert perplexity.compared(reference, reference)["rise_percent_high"] == 0


def test_a_ratio_is_taken_within_a_round() -> None:
    compare = importlib.import_module("compare_cpu")
    # Every round is twice as fast; the machine was slow in the second.
    assert compare.ratio([20.0, 2.0, 30.0], [10.0, 1.0, 15.0]) == 2.0


@pytest.mark.parametrize("bits", [4, 8])
def test_plain_rounding_misses_by_half_a_step_at_most(bits: int) -> None:
    rounding = importlib.import_module("plain_rounding")
    packing = importlib.import_module("baichuan2_tpu.checkpoint.gptq")
    weights = np.random.default_rng(0).normal(0, 0.02, (8, 160)).astype(np.float32)
    integers, scales, zeros = rounding._round_groups(weights, bits, 64)
    packed = packing.pack_linear(integers, scales, zeros, bits=bits, group_size=64)
    steps = np.repeat(scales.astype(np.float32), 64, axis=1)[:, :160]
    # The float16 scale and the rounded zero can cost the ends of the range another half.
    assert (np.abs(dequantize(packed) - weights) <= 1.01 * steps).all()
    assert np.mean(np.abs(dequantize(packed) - weights) <= 0.51 * steps) > 0.95


def test_float_weights_score_as_the_reference(perplexity: ModuleType, checkpoint: FloatCheckpoint) -> None:
    text = perplexity.Text(tokens=TOKENS, window=20, stride=10)
    names = [*float_weights(checkpoint.config, 0)]
    weights = {name: checkpoint.read(name.removesuffix(".weight")) for name in names}

    def logits(tokens: list[int]) -> Iterator[NDArray[np.float32]]:
        yield reference_logits(checkpoint.config, weights, tokens).astype(np.float32)

    found, expected = perplexity.score_float(checkpoint, text), perplexity.score(logits, text)
    np.testing.assert_allclose(found.losses, expected.losses, rtol=1e-5)


def test_plainly_rounded_weights_run_in_the_engine(checkpoint: FloatCheckpoint) -> None:
    rounded = importlib.import_module("plain_rounding").RoundedWeights(checkpoint, QuantizationConfig(8))
    model = FloatModel(checkpoint)
    expected = model.logits(model.run(np.array([TOKENS]))[0])
    with CpuEngine(rounded, is_exact=True) as engine, engine.open_sequence() as sequence:
        logits = engine.forward([Chunk(sequence, TOKENS, len(TOKENS))])[0]
    assert np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()


def test_one_layer_stands_for_all_of_them() -> None:
    script = importlib.import_module("estimate_7b")
    config = script.with_head(script.shape_config(script.SHAPE, 4), "w4")
    settings = script.settings_for(config, 512, "w4")
    layer = [NetCost("block_cache_0", tokens, 512, 2.0 + tokens / 100, 10, 10) for tokens in settings.stages]
    row = script.our_row(config, settings, [*layer, NetCost("lm_head", 1, 0, 5.0, 10, 10)])
    assert row.decode_ms == pytest.approx(32 * 2.01 + 5)
    assert row.first_token_ms[14] == pytest.approx(32 * 2.16 + 5)
    lines = script.table([row])
    assert lines[-1].startswith("| ours | 4 | 512 | w4 | 2.01 ms | 5.00 ms | 69.3 ms | 14.43 | 74 ms |")
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


def test_the_vendors_form_gives_keys_and_values_of_every_position() -> None:
    config = importlib.import_module("estimate_7b").shape_config("tiny", 4)
    script = importlib.import_module("vendor_form")
    whole = script.vendor_block(config, 4, 64, has_history=False)
    one = script.vendor_block(config, 4, 64, has_history=True)
    assert (whole.tokens, whole.history, one.tokens, one.history) == (64, 0, 1, 64)
    assert "-> (tensor<1x64x128xf32>, tensor<1x64x4x32xf32>, tensor<1x64x4x32xf32>)" in whole.text
    assert "-> (tensor<1x1x128xf32>, tensor<1x1x4x32xf32>, tensor<1x1x4x32xf32>)" in one.text
