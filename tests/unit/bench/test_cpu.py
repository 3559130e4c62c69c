"""The benchmark runs what it says, and its report holds what a reader and a program need."""

import json
from collections.abc import Sequence as Items
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.bench import (
    VENDOR_PROMPT_IDS,
    BenchReport,
    BenchSettings,
    Ceilings,
    Measurement,
    Run,
    Traffic,
    peak_rss_bytes,
    prefill_macs,
    run_bench,
    shape_config,
    vendor_prompt_ids,
)
from baichuan2_tpu.engine.base import Chunk, Engine, Sequence
from baichuan2_tpu.errors import ContextLengthError, RequestError

TINY = shape_config("tiny", 4)
SETTINGS = BenchSettings(
    prompt=(3, 1, 4), prefill_tokens=16, decode_tokens=5, warmups=1, repetitions=2, threads=2
)


class CountingSequence(Sequence):
    def __init__(self) -> None:
        self.tokens = 0
        self.is_open = True

    @property
    def length(self) -> int:
        return self.tokens

    def truncate(self, length: int) -> None:
        self.tokens = length

    def close(self) -> None:
        self.is_open = False


class CountingEngine(Engine):
    """Answers every chunk with the same logits and keeps the chunk sizes."""

    name = "counting"
    config = TINY
    max_context = 64
    max_sequences = 1

    def __init__(self) -> None:
        self.sequences: list[CountingSequence] = []
        self.calls: list[tuple[int, ...]] = []
        self.is_closed = False

    def open_sequence(self) -> Sequence:
        self.sequences.append(CountingSequence())
        return self.sequences[-1]

    def forward(self, chunks: Items[Chunk]) -> list[NDArray[np.float32]]:
        self.calls += [tuple(chunk.tokens) for chunk in chunks]
        logits = np.zeros((1, TINY.vocabulary_size), np.float32)
        logits[0, 9] = 1.0
        return [logits for _ in chunks]

    def close(self) -> None:
        self.is_closed = True


class TellingEngine(CountingEngine):
    weight_bytes = 1000

    @property
    def kv_bytes_per_token(self) -> int:
        return 10


def ceilings(threads: int, bits: int) -> Ceilings:
    return Ceilings(read_bytes_per_s=threads * 1e9, multiply_mac_per_s=None)


def report(traffic: Traffic | None = None) -> BenchReport:
    return BenchReport(
        model="tiny",
        engine="counting",
        platform="a processor, 2 threads",
        config=TINY,
        settings=SETTINGS,
        load_s=0.5,
        peak_rss_bytes=2_000_000_000,
        runs=(Run(0.2, 5.0, 8.0), Run(0.1, 2.5, 4.0), Run(0.4, 1.0, 2.0)),
        clients=(),
        traffic=traffic,
        ceilings=Ceilings(read_bytes_per_s=4000.0, multiply_mac_per_s=None),
    )


def test_a_repetition_is_the_prompt_its_answer_and_a_long_prompt() -> None:
    engine = CountingEngine()
    run_bench(lambda: engine, SETTINGS, model="tiny", ceilings=ceilings)
    answer = [(3, 1, 4), *[(9,)] * 5]
    one = [len(call) for call in [*answer, range(16)]]
    assert [len(call) for call in engine.calls] == one * 3
    assert engine.calls[: len(answer)] == answer


def test_engine_and_sequences_are_closed() -> None:
    engine = CountingEngine()
    run_bench(lambda: engine, SETTINGS, model="tiny", ceilings=ceilings)
    assert engine.is_closed
    assert not any(sequence.is_open for sequence in engine.sequences)


def test_warm_ups_do_not_count() -> None:
    result = run_bench(CountingEngine, SETTINGS, model="tiny", ceilings=ceilings)
    assert len(result.runs) == 2


def test_steps_are_told_in_order() -> None:
    steps: list[str] = []
    run_bench(CountingEngine, SETTINGS, model="tiny", ceilings=ceilings, on_step=steps.append)
    assert steps == ["loading", "warming up", "run 1 of 2", "run 2 of 2", "measuring the machine"]


def test_the_machine_is_measured_with_the_same_threads() -> None:
    result = run_bench(TellingEngine, SETTINGS, model="tiny", ceilings=ceilings)
    assert result.ceilings.read_bytes_per_s == 2e9
    assert result.traffic == Traffic(weight_bytes=1000, kv_bytes_per_token=10)


def test_lengths_beyond_the_context_are_refused_before_any_work() -> None:
    engine = CountingEngine()
    settings = BenchSettings(prompt=(1,), prefill_tokens=65, threads=1)
    with pytest.raises(ContextLengthError, match="65 tokens do not fit: the context holds 64"):
        run_bench(lambda: engine, settings, model="tiny", ceilings=ceilings)
    assert engine.calls == []


def test_rates_are_medians_with_their_spread() -> None:
    assert report().decode_tok_per_s == Measurement(median=2.0, low=1.0, high=5.0)
    assert report().prefill_tok_per_s == Measurement(median=4.0, low=2.0, high=8.0)
    assert report().first_token_s == Measurement(median=0.2, low=0.1, high=0.4)


def test_decode_traffic_counts_weights_and_the_cache_of_the_mean_length() -> None:
    # Five steps read the cache of 4, 5, 6, 7 and 8 tokens.
    measured = report(Traffic(weight_bytes=1000, kv_bytes_per_token=10)).decode_bytes_per_s
    assert measured is not None
    assert measured.median == 2.0 * (1000 + 60)


def test_an_engine_that_tells_no_traffic_leaves_a_blank() -> None:
    assert report().decode_bytes_per_s is None
    assert report().to_json()["decode_bytes_per_s"] is None
    assert ("  memory reads", "", "") in report().rows()


def test_json_holds_the_promised_keys() -> None:
    values = json.loads(json.dumps(report(Traffic(1000, 10)).to_json()))
    assert values["decode_tok_per_s"] == 2.0
    assert values["prefill_tok_per_s"] == 4.0
    assert values["first_token_s"] == 0.2
    assert values["load_s"] == 0.5
    assert values["peak_rss_bytes"] == 2_000_000_000
    assert values["decode_bytes_per_s"] == 2120.0
    assert values["decode_tok_per_s_low"] == 1.0
    assert values["bits"] == 4
    assert values["platform"] == "a processor, 2 threads"
    assert values["multiply_mac_per_s_ceiling"] is None


def test_rows_show_the_share_of_a_known_ceiling_and_a_blank_for_an_unknown_one() -> None:
    rows = {name: (value, ceiling) for name, value, ceiling in report(Traffic(1000, 10)).rows()}
    assert rows["decode of 5"] == ("2.00 tok/s (1.00 to 5.00)", "")
    assert rows["first token after 3"] == ("200.00 ms (100.00 to 400.00)", "")
    assert rows["  memory reads"][1] == "53% of 0.0 GB/s"
    assert rows["  multiplications"][1] == ""


def test_multiplications_follow_from_the_shape() -> None:
    config = shape_config("baichuan2-7b", 4)
    head = 4096 * 125_696
    assert prefill_macs(config, 1) == 6_476_005_376 + head
    assert prefill_macs(config, 512) == 512 * 6_476_005_376 + head


def test_the_vendors_prompt_fits_a_smaller_vocabulary() -> None:
    assert vendor_prompt_ids(shape_config("baichuan2-7b", 4)) == VENDOR_PROMPT_IDS
    assert max(vendor_prompt_ids(TINY)) < TINY.vocabulary_size


@pytest.mark.parametrize("setting", ["prefill_tokens", "decode_tokens", "repetitions", "threads"])
def test_a_count_below_one_is_refused(setting: str) -> None:
    with pytest.raises(RequestError, match=r"at least 1 .*not 0"):
        replace(SETTINGS, **{setting: 0})


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="at least 1 of its prompt tokens"):
        BenchSettings(prompt=())


def test_negative_warm_ups_are_refused() -> None:
    with pytest.raises(RequestError, match="cannot warm up -1 times"):
        BenchSettings(warmups=-1)


def test_peak_memory_grows_with_what_is_held() -> None:
    before = peak_rss_bytes()
    held = np.ones(before // 8, np.int64)  # as much as the peak, on top of what the interpreter holds
    assert peak_rss_bytes() > before
    del held
