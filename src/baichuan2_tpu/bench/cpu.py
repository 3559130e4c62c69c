"""Measure an engine on this machine's processor, and compare it with the limits of the machine.

Not here: printing (``cli``), comparing with other programs (``benchmarks/`` beside the package).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from baichuan2_tpu import _native
from baichuan2_tpu.bench.clients import ClientsMeasurement, check_clients, measure_clients
from baichuan2_tpu.bench.table import PerformanceRow, processor_platform
from baichuan2_tpu.bench.timing import (
    VENDOR_PROMPT_IDS,
    Measurement,
    flat_json,
    format_measurement,
    peak_rss_bytes,
    time_answer,
    time_prefill,
)
from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.engine.base import Engine, check_room
from baichuan2_tpu.engine.processors import available_threads
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.shapes import SHAPES, shape_config

__all__ = [
    "SHAPES",
    "BenchReport",
    "BenchSettings",
    "Ceilings",
    "RandomWeights",
    "Run",
    "Traffic",
    "available_threads",
    "measure_ceilings",
    "prefill_macs",
    "run_bench",
    "shape_config",
]


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """What to measure.

    Units: lengths count tokens. The first token and the answer are timed for ``prompt``.
    ``threads`` is for the machine's ceilings and should be the engine's. ``clients`` are the numbers
    of answers to compute at once.
    """

    prompt: tuple[int, ...] = VENDOR_PROMPT_IDS
    prefill_tokens: int = 512
    decode_tokens: int = 32
    warmups: int = 1
    repetitions: int = 3
    threads: int = field(default_factory=available_threads)
    clients: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = {
            "prompt tokens": len(self.prompt),
            "prefill tokens": self.prefill_tokens,
            "decode tokens": self.decode_tokens,
            "repetitions": self.repetitions,
            "threads": self.threads,
        }
        for name, count in counts.items():
            if count < 1:
                raise RequestError(f"the benchmark needs at least 1 of its {name}, not {count}")
        if self.warmups < 0:
            raise RequestError(f"the benchmark cannot warm up {self.warmups} times; 0 is the least")


@dataclass(frozen=True, slots=True)
class Ceilings:
    """The best this machine does with the same number of threads; None where it is not known."""

    read_bytes_per_s: float | None = None
    multiply_mac_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Run:
    """Times of one repetition: the prompt with the choice of a first token, its answer, a long prompt."""

    first_token_s: float
    decode_s: float
    prefill_s: float


@dataclass(frozen=True, slots=True)
class Traffic:
    """What one decode step reads: every weight once, and the keys and values of each token held."""

    weight_bytes: int
    kv_bytes_per_token: int


@runtime_checkable
class _KnowsTraffic(Protocol):
    """An engine that can say what a decode step reads."""

    weight_bytes: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True)
class BenchReport:
    """What was measured, with the settings that produced it.

    Units: as the names end; a MAC is one multiplication and addition.
    ``traffic`` is None for an engine that does not report it.
    """

    model: str
    engine: str
    platform: str
    config: ModelConfig
    settings: BenchSettings
    load_s: float
    peak_rss_bytes: int
    runs: tuple[Run, ...]
    clients: tuple[ClientsMeasurement, ...]
    traffic: Traffic | None
    ceilings: Ceilings

    @property
    def bits(self) -> int | None:
        """Bits per weight; None for a model of floats."""
        return self.config.quantization.bits if self.config.quantization else None

    @property
    def performance(self) -> PerformanceRow:
        """The line of the performance table."""
        return PerformanceRow(
            self.platform, self.model, self.bits, self.first_token_s.median, self.decode_tok_per_s.median
        )

    @property
    def first_token_s(self) -> Measurement:
        """Time from the prompt to its first token."""
        return Measurement.of([run.first_token_s for run in self.runs])

    @property
    def prefill_tok_per_s(self) -> Measurement:
        """Tokens of the long prompt over the time until its logits."""
        return Measurement.of([self.settings.prefill_tokens / run.prefill_s for run in self.runs])

    @property
    def decode_tok_per_s(self) -> Measurement:
        """Tokens of the answer over its time, the first token left out."""
        return Measurement.of([self.settings.decode_tokens / run.decode_s for run in self.runs])

    @property
    def decode_bytes_per_s(self) -> Measurement | None:
        """Bytes of weights, keys and values read while decoding; None where the engine does not report it."""
        if self.traffic is None:
            return None
        # Step k of n reads the cache of the prompt and of k tokens.
        mean_length = len(self.settings.prompt) + (self.settings.decode_tokens + 1) / 2
        step_bytes = self.traffic.weight_bytes + self.traffic.kv_bytes_per_token * mean_length
        return self.decode_tok_per_s.scale(step_bytes)

    @property
    def prefill_mac_per_s(self) -> Measurement:
        """Multiplications of the linear layers per second of the long prompt."""
        macs = prefill_macs(self.config, self.settings.prefill_tokens)
        return self.prefill_tok_per_s.scale(macs / self.settings.prefill_tokens)

    def to_json(self) -> dict[str, object]:
        """Return one object; a measurement is its median, beside ``NAME_low`` and ``NAME_high``."""
        traffic, settings = self.traffic, self.settings
        result: dict[str, object] = {
            "model": self.model,
            "engine": self.engine,
            "platform": self.platform,
            "bits": self.bits,
            "threads": settings.threads,
            "prompt_tokens": len(settings.prompt),
            "prefill_tokens": settings.prefill_tokens,
            "decode_tokens": settings.decode_tokens,
            "warmups": settings.warmups,
            "repetitions": settings.repetitions,
            "load_s": self.load_s,
            "peak_rss_bytes": self.peak_rss_bytes,
            "weight_bytes": traffic.weight_bytes if traffic else None,
            "kv_bytes_per_token": traffic.kv_bytes_per_token if traffic else None,
        }
        for name in ("first_token_s", "prefill_tok_per_s", "decode_tok_per_s"):
            result |= flat_json(name, getattr(self, name))
        result |= flat_json("decode_bytes_per_s", self.decode_bytes_per_s)
        result |= flat_json("prefill_mac_per_s", self.prefill_mac_per_s)
        result["read_bytes_per_s_ceiling"] = self.ceilings.read_bytes_per_s
        result["multiply_mac_per_s_ceiling"] = self.ceilings.multiply_mac_per_s
        result["clients"] = [row.to_json() for row in self.clients]
        return result

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the figures for a reader: what, median with spread, and the machine's ceiling or a blank."""
        settings, ceilings = self.settings, self.ceilings
        reads, macs = self.decode_bytes_per_s, self.prefill_mac_per_s
        return [
            ("load", f"{self.load_s:.2f} s", ""),
            ("peak memory", f"{self.peak_rss_bytes / 1e9:.2f} GB", ""),
            (
                f"first token after {len(settings.prompt)}",
                format_measurement(self.first_token_s, "ms", 1e3),
                "",
            ),
            (
                f"prefill of {settings.prefill_tokens}",
                format_measurement(self.prefill_tok_per_s, "tok/s"),
                "",
            ),
            (
                "  multiplications",
                format_measurement(macs, "GMAC/s", 1e-9),
                _share(macs, ceilings.multiply_mac_per_s, "GMAC/s"),
            ),
            (f"decode of {settings.decode_tokens}", format_measurement(self.decode_tok_per_s, "tok/s"), ""),
            (
                "  memory reads",
                format_measurement(reads, "GB/s", 1e-9),
                _share(reads, ceilings.read_bytes_per_s, "GB/s"),
            ),
        ]


def _share(measured: Measurement | None, ceiling: float | None, unit: str) -> str:
    if measured is None or ceiling is None:
        return ""
    return f"{measured.median / ceiling:.0%} of {ceiling / 1e9:.1f} {unit}"


def prefill_macs(config: ModelConfig, tokens: int) -> int:
    """Count the multiplications of the linear layers for a prompt whose last token gets logits."""
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    attention = config.hidden_size * (2 * queries + 2 * keys)
    feed_forward = 3 * config.hidden_size * config.intermediate_size
    # The head runs for one row, however long the prompt is.
    head = config.hidden_size * config.vocabulary_size
    return tokens * config.layers * (attention + feed_forward) + head


def measure_ceilings(threads: int, bits: int) -> Ceilings:
    """Measure, in a second, how fast this many threads read memory and multiply ``bits``-bit weights."""
    return Ceilings(_native.measure_read_bandwidth(threads), _native.measure_multiply_peak(threads, bits))


def run_bench(
    open_engine: Callable[[], Engine],
    settings: BenchSettings,
    *,
    model: str,
    ceilings: Callable[[int, int], Ceilings] = measure_ceilings,
    on_step: Callable[[str], None] | None = None,
) -> BenchReport:
    """Open an engine, measure it, close it, then measure the machine.

    ``on_step`` is called with each step as it begins. Stop ids do not end the answer, so that all runs have
    the same length.
    Raises: ContextLengthError when the lengths do not fit the engine's context; RequestError when it holds
    fewer clients.
    """
    tell = on_step or _ignore
    tell("loading")
    started = time.perf_counter()
    with open_engine() as engine:
        load_s = time.perf_counter() - started
        check_clients(engine, settings.clients, settings.decode_tokens)
        runs = _measure(engine, settings, tell)
        clients = measure_clients(engine, settings.clients, settings.decode_tokens, tell)
        name, config, traffic = engine.name, engine.config, _traffic(engine)
    bits = config.quantization.bits if config.quantization else 8
    # Before the machine is measured: that takes a gigabyte of its own.
    peak = peak_rss_bytes()
    tell("measuring the machine")
    limits = ceilings(settings.threads, bits)
    return BenchReport(
        model=model,
        engine=name,
        platform=processor_platform(settings.threads),
        config=config,
        settings=settings,
        load_s=load_s,
        peak_rss_bytes=peak,
        runs=runs,
        clients=clients,
        traffic=traffic,
        ceilings=limits,
    )


def _ignore(step: str) -> None:
    del step


def _measure(engine: Engine, settings: BenchSettings, tell: Callable[[str], None]) -> tuple[Run, ...]:
    needed = max(len(settings.prompt) + settings.decode_tokens, settings.prefill_tokens)
    check_room(0, needed, engine.max_context)
    runs: list[Run] = []
    for number in range(1 - settings.warmups, settings.repetitions + 1):
        tell("warming up" if number < 1 else f"run {number} of {settings.repetitions}")
        first_token_s, decode_s = time_answer(engine, settings.prompt, settings.decode_tokens)
        runs.append(Run(first_token_s, decode_s, time_prefill(engine, settings.prefill_tokens)))
    return tuple(runs[settings.warmups :])


def _traffic(engine: Engine) -> Traffic | None:
    if not isinstance(engine, _KnowsTraffic):
        return None
    return Traffic(engine.weight_bytes, engine.kv_bytes_per_token)
