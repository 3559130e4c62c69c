"""The benchmark of a bundle measures what it says, and tells a simulator from a chip."""

import json

import pytest

from baichuan2_tpu.bench import BundleBenchSettings, BundleReport, prompt_lengths, run_bundle_bench
from baichuan2_tpu.errors import ContextLengthError, RequestError
from doubles.fakes import HistoryEngine
from models.bundle_manifest import bundle_manifest

SETTINGS = BundleBenchSettings(prompt=(3, 1, 4), lengths=(8, 16), decode_tokens=5, repetitions=2)


def measure(engine: HistoryEngine, settings: BundleBenchSettings = SETTINGS) -> BundleReport:
    return run_bundle_bench(
        lambda: engine, settings, model="tiny", manifest=bundle_manifest(), on_step=lambda _: None
    )


def test_a_repetition_is_the_prompt_its_answer_and_every_length() -> None:
    engine = HistoryEngine(320)
    report = measure(engine)
    assert [len(chunk) for chunk in engine.fed] == [3, 1, 1, 1, 1, 1, 8, 16] * 3
    assert engine.open_sequences == 0
    assert list(report.first_token_s) == [3, 8, 16]


def test_steps_are_told_in_order() -> None:
    steps: list[str] = []
    run_bundle_bench(
        lambda: HistoryEngine(320), SETTINGS, model="tiny", manifest=bundle_manifest(), on_step=steps.append
    )
    assert steps == ["loading", "warming up", "run 1 of 2", "run 2 of 2"]


def test_the_report_names_the_engine_and_what_was_compiled() -> None:
    values = json.loads(json.dumps(measure(HistoryEngine(320)).to_json()))
    assert (values["engine"], values["is_measure_of_speed"]) == ("fake", True)
    assert (values["chip"], values["bits"], values["head"], values["context"]) == ("bm1684x", 4, "w8", 128)
    assert list(values["first_token_ms"]) == ["3", "8", "16"]
    assert 0 < values["decode_tok_per_s_low"] <= values["decode_tok_per_s"] <= values["decode_tok_per_s_high"]


def test_a_run_on_the_simulator_is_no_measure_of_speed() -> None:
    engine = HistoryEngine(320)
    engine.name = "bmrt-simulator"
    report = measure(engine)
    assert report.to_json()["is_measure_of_speed"] is False
    assert report.rows()[0] == ("engine", "bmrt-simulator: no measure of a chip's speed", "")
    assert report.performance.platform == "simulator of BM1684X: not a measure of its speed"


def test_the_performance_table_has_the_first_token_of_the_prompt_that_is_answered() -> None:
    report = measure(HistoryEngine(320))
    row = report.performance
    assert (row.model, row.bits) == ("tiny", 4)
    assert row.first_token_s == report.first_token_s[3].median
    assert row.tok_per_s == report.decode_tok_per_s.median


@pytest.mark.parametrize(
    "settings",
    [
        BundleBenchSettings(prompt=(1,), lengths=(65,)),
        BundleBenchSettings(prompt=(1,) * 40, lengths=(), decode_tokens=25),
    ],
)
def test_lengths_beyond_the_context_are_refused_before_any_work(settings: BundleBenchSettings) -> None:
    engine = HistoryEngine(320, max_context=64)
    with pytest.raises(ContextLengthError, match="65 tokens do not fit: the context holds 64"):
        measure(engine, settings)
    assert engine.fed == []


def test_a_count_below_one_is_refused() -> None:
    with pytest.raises(RequestError, match="at least 1 of its decode tokens, not 0"):
        BundleBenchSettings(prompt=(1,), lengths=(), decode_tokens=0)


def test_lengths_double_up_to_the_context() -> None:
    assert prompt_lengths(512) == (64, 128, 256, 512)
    assert prompt_lengths(100) == (64, 100)
    assert prompt_lengths(32) == (32,)
