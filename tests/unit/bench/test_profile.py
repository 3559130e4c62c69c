"""A profile counts what each kind of work read, multiplied and took, and draws it."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from baichuan2_tpu.bench import (
    Ceilings,
    ProfileReport,
    ProfileSettings,
    RandomWeights,
    prefill_macs,
    run_profile,
    shape_config,
)
from baichuan2_tpu.bench.profile import Phase, WorkTotal
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.errors import RequestError
from doubles.talking_engine import TalkingEngine

TINY = shape_config("tiny", 4)
LINEARS = ("queries, keys, values", "output", "gate and up", "down", "head")


def make_engine(context: int = 128) -> CpuEngine:
    return CpuEngine(RandomWeights(TINY), context=context, threads=1)


@pytest.fixture(scope="module")
def report() -> ProfileReport:
    settings = ProfileSettings(prompt_tokens=40, context_tokens=100, decode_tokens=3, threads=1)
    return run_profile(make_engine, settings, model="tiny", ceilings=lambda *_: Ceilings(1e9, 2e9))


def works(phase: Phase) -> dict[str, WorkTotal]:
    return {work.name: work for work in phase.works}


def test_a_prompt_and_answers_at_both_lengths_are_measured(report: ProfileReport) -> None:
    assert [(phase.name, phase.tokens) for phase in report.phases] == [
        ("prefill of 40", 40),
        ("decode at 40", 3),
        ("prefill from 43 to 100", 57),
        ("decode at 100", 3),
    ]


def test_linear_layers_multiply_what_the_shape_says(report: ProfileReport) -> None:
    counted = works(report.phases[0])
    assert sum(counted[name].macs for name in LINEARS) == prefill_macs(TINY, 40)
    with make_engine() as engine:
        assert sum(works(report.phases[1])[name].read_bytes for name in LINEARS) == 3 * engine.weight_bytes


def test_attention_reads_the_keys_and_values_of_every_token_held(report: ProfileReport) -> None:
    with make_engine() as engine:
        held = 101 + 102 + 103
        assert works(report.phases[3])["attention"].read_bytes == held * engine.kv_bytes_per_token
    macs = 2 * TINY.layers * TINY.heads * TINY.head_size
    assert works(report.phases[3])["attention"].macs == held * macs
    assert works(report.phases[0])["attention"].macs == sum(range(1, 41)) * macs


def test_kinds_of_work_fill_the_time_of_a_phase(report: ProfileReport) -> None:
    for phase in report.phases:
        assert sum(work.seconds for work in phase.complete_works) == pytest.approx(phase.seconds)
        assert all(work.seconds > 0 for work in phase.works)


def test_rates_stand_beside_their_share_of_the_limit() -> None:
    phase = Phase("decode at 7", 2, 4.0, (WorkTotal("head", 1.0, 500_000_000, 1_000_000_000),))
    report = ProfileReport("tiny", "here", "scalar", (phase,), Ceilings(1e9, 2e9))
    lines = list(report.lines())
    assert lines[0] == "tiny on here, scalar kernels"
    assert "decode at 7: 2000.00 ms per token, 0.5 tok/s" in lines
    assert "| head | 500.000 | 25.0% | 0.5 | 50% | 1.0 | 50% |" in lines
    assert "| everything else | 1500.000 | 75.0% |  |  |  |  |" in lines


def test_the_picture_has_a_bar_for_each_kind_of_work(report: ProfileReport) -> None:
    picture = ElementTree.fromstring(report.draw())
    texts = [text.text or "" for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("attention") == len(report.phases)
    assert any(text.startswith("decode at 100: ") for text in texts)


def test_a_context_that_ends_with_the_prompt_is_looked_at_once() -> None:
    settings = ProfileSettings(prompt_tokens=40, decode_tokens=3, threads=1)
    report = run_profile(lambda: make_engine(43), settings, model="t", ceilings=lambda *_: Ceilings())
    assert [phase.name for phase in report.phases] == ["prefill of 40", "decode at 40"]


def test_only_the_cpu_engine_is_profiled() -> None:
    with pytest.raises(RequestError, match="counts no kinds of work; a profile is of the cpu's"):
        run_profile(TalkingEngine, ProfileSettings(), model="t")


def test_counting_ends_with_the_profile() -> None:
    with make_engine() as engine, engine.open_sequence() as sequence:
        with engine.profile() as first:
            engine.forward([Chunk(sequence, [1], 1)])
        engine.forward([Chunk(sequence, [1], 1)])
        with engine.profile() as second:
            pass
    assert sum(total[1] for total in first) > 0
    assert sum(total[1] for total in second) == 0
