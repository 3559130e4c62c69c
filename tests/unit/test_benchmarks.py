"""What the benchmark scripts compute themselves: ratios, plain rounding, tables, an estimate of a whole."""

import importlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.packing import dequantize
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.manifest import NetCost
from baichuan2_tpu.reference.float_model import FloatModel
from models.tiny_checkpoint import rope_config, write_llama_safetensors

TOKENS = list(range(3, 80))

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def checkpoint(tmp_path: Path) -> FloatCheckpoint:
    config = rope_config()
    return FloatCheckpoint.open(write_llama_safetensors(tmp_path, config))


def test_a_version_is_shown_beside_the_float_weights() -> None:
    script = importlib.import_module("perplexity")
    counts, best = np.full(20, 100), np.zeros(2000, np.int64)
    reference = script.Perplexity(np.full(20, 200.0), counts, best)
    worse = script.Perplexity(np.random.default_rng(0).normal(202, 1, 20), counts, best)
    rows = {"float32": script.compare(reference, reference), "4 bits": script.compare(worse, reference)}
    lines = script.table(rows)
    assert lines[2] == "| float32 | 7.3891 | +0.000 % | +0.000 to +0.000 % | 100.00% |"
    assert lines[3].startswith("| 4 bits | 7.5")
    assert script.cells("one window", rows["float32"] | {"rise_percent_low": None})[3] == ""


def test_a_ratio_is_taken_within_a_round() -> None:
    compare = importlib.import_module("compare_cpu")
    # Every round is twice as fast; the machine was slow in the second.
    assert compare.ratio([20.0, 2.0, 30.0], [10.0, 1.0, 15.0]) == 2.0


def test_a_prebuilt_llama_bench_is_asked_for_both_tests(tmp_path: Path) -> None:
    peer, protocol = importlib.import_module("peers.llama_bench"), importlib.import_module("peers.protocol")
    program, calls = tmp_path / "llama-bench", tmp_path / "calls"
    answer = '[{"build_number": 7, "build_commit": "abc", "avg_ts": 20.0}]'
    program.write_text(f"#!/bin/sh\necho \"$@\" >> {calls}\necho '{answer}'\n")
    program.chmod(0o755)
    gguf = protocol.GgufModel("x.gguf", "Q4_0", 100, 10)
    job = protocol.Job("tiny", 64, 128, 2, 4, 2, 512, gguf, (str(program), "-rtr", "1"))
    bench = peer.load(protocol.Job.from_json(json.dumps(asdict(job))))
    assert bench.description.version == f"{program}, build 7 (abc)"
    assert bench.prefill(512) == 512 / 20
    assert bench.decode(14, 24) == 24 / 20
    assert [line.split()[-4:] for line in calls.read_text().splitlines()] == [
        ["-p", "1", "-n", "0"],
        ["-p", "512", "-n", "0"],
        ["-p", "0", "-n", "24"],
    ]
    assert calls.read_text().startswith("-rtr 1 -m x.gguf -t 2 -b 512 -ub 512 -r 1 -o json")


@pytest.mark.parametrize("bits", [4, 8])
def test_plain_rounding_misses_by_half_a_step_at_most(bits: int) -> None:
    rounding = importlib.import_module("plain_rounding")
    packing = importlib.import_module("baichuan2_tpu.checkpoint.packing")
    weights = np.random.default_rng(0).normal(0, 0.02, (8, 160)).astype(np.float32)
    integers, scales, zeros = rounding._round_groups(weights, bits, 64)
    packed = packing.pack_linear(integers, scales, zeros, bits=bits, group_size=64)
    steps = np.repeat(scales.astype(np.float32), 64, axis=1)[:, :160]
    # The float16 scale and the rounded zero can cost the ends of the range another half.
    assert (np.abs(dequantize(packed) - weights) <= 1.01 * steps).all()
    assert np.mean(np.abs(dequantize(packed) - weights) <= 0.51 * steps) > 0.95


def test_plainly_rounded_weights_run_in_the_engine(checkpoint: FloatCheckpoint) -> None:
    rounded = importlib.import_module("plain_rounding").RoundedWeights(checkpoint, QuantizationConfig(8))
    model = FloatModel(checkpoint)
    expected = model.logits(model.run(np.array([TOKENS]))[0])
    with CpuEngine(rounded, is_exact=True) as engine, engine.open_sequence() as sequence:
        logits = engine.forward([Chunk(sequence, TOKENS, len(TOKENS))])[0]
    assert np.abs(logits - expected).max() < 0.02 * np.abs(expected).max()


def test_one_layer_stands_for_all_of_them() -> None:
    script = importlib.import_module("estimate_7b")
    build = script.Build(4, 64, "w4")
    costs = [NetCost("lm_head", rows, 0, 5.0, 10, 10) for rows in (1, 16, 32)]
    for tokens, history in script.settings_for(build).stages:
        time_ms = 2.0 + tokens / 100 + history / 1e4
        costs.append(NetCost("block_cache_0", tokens, history, time_ms, 10, 10))
    found = script.whole_model(build, costs)
    assert script.step_ms(found, 1, 512) == pytest.approx(32 * 2.0612 + 5)
    assert script.step_ms(found, 16, 2048) == pytest.approx(32 * 2.3648 + 5)
    assert found.first_tokens[14].total.time_ms == pytest.approx(32 * 2.1728 + 5)
    assert found.decode.total.launches == 9
    tables = [script.build_table({build: found}), script.users_table(found)]
    tables.append(script.goal_table(script.goals({build: found})))
    for lines in tables:
        assert {line.count("|") for line in lines} == {lines[0].count("|")}
    assert tables[0][-1].startswith("| 4 bits, groups of 64, 4-bit head | 69.7 ms | 71.0 ms |")
    assert "| 16 users, 4-bit head, 2048 rows | 105 ms | 80.7 ms |" in tables[2]


def test_the_vendors_form_gives_keys_and_values_of_every_position() -> None:
    config = importlib.import_module("estimate_7b").shape_config("tiny", 4)
    script = importlib.import_module("vendor_form")
    whole = script.vendor_block(config, 4, 64, has_history=False)
    one = script.vendor_block(config, 4, 64, has_history=True)
    assert (whole.stage, one.stage) == ((64, 0), (1, 64))
    assert "-> (tensor<1x64x128xf32>, tensor<1x64x4x32xf32>, tensor<1x64x4x32xf32>)" in whole.text
    assert "-> (tensor<1x1x128xf32>, tensor<1x1x4x32xf32>, tensor<1x1x4x32xf32>)" in one.text
