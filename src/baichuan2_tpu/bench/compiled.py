"""Measure a compiled bundle on the engine that was opened for it: a TPU, or the simulator.

A time on the simulator says how long the simulator takes and nothing of a chip, and every report of one says
so. Not here: what the compiler's cycle model says of the same bundle (``estimate``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from baichuan2_tpu.bench.clients import ClientsMeasurement, check_clients, measure_clients
from baichuan2_tpu.bench.table import PerformanceRow, chip_platform
from baichuan2_tpu.bench.timing import (
    Measurement,
    flat_json,
    format_measurement,
    peak_rss_bytes,
    time_answer,
    time_prefill,
)
from baichuan2_tpu.engine.base import Engine, check_room
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.manifest import Manifest

__all__ = ["BundleBenchSettings", "BundleReport", "prompt_lengths", "run_bundle_bench"]

_SHORTEST_DOUBLED = 64
_VENDOR_CHIP = "bm1684x"


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleBenchSettings:
    """What to measure.

    Units: lengths count tokens. The first token is timed for ``prompt``, which the answer follows, and for
    prompts of each of ``lengths``. ``clients`` are the numbers of answers to compute at once.
    """

    prompt: tuple[int, ...]
    lengths: tuple[int, ...]
    decode_tokens: int = 32
    warmups: int = 1
    repetitions: int = 3
    clients: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        counts = {"decode tokens": self.decode_tokens, "repetitions": self.repetitions}
        for name, count in counts.items():
            if count < 1:
                raise RequestError(f"the benchmark needs at least 1 of its {name}, not {count}")


@dataclass(frozen=True, slots=True)
class BundleReport:
    """What was measured, and on what.

    Units: as the names end; ``first_token_s`` is by the tokens of the prompt.
    """

    model: str
    engine: str
    platform: str
    manifest: Manifest | None
    """None for a bmodel that came without one."""
    settings: BundleBenchSettings
    load_s: float
    peak_rss_bytes: int
    first_token_s: Mapping[int, Measurement]
    decode_tok_per_s: Measurement
    clients: tuple[ClientsMeasurement, ...]
    is_simulated: bool
    """True when the times say nothing of a chip's speed."""

    @property
    def performance(self) -> PerformanceRow:
        """The line of the performance table, for the prompt that the answer follows."""
        first_token = self.first_token_s[len(self.settings.prompt)]
        bits = self.manifest.bits if self.manifest else None
        return PerformanceRow(
            self.platform, self.model, bits, first_token.median, self.decode_tok_per_s.median
        )

    def to_json(self) -> dict[str, object]:
        """Return one object; a measurement is its median, beside ``NAME_low`` and ``NAME_high``."""
        settings = self.settings
        result: dict[str, object] = {
            "model": self.model,
            "engine": self.engine,
            "platform": self.platform,
            "is_measure_of_speed": not self.is_simulated,
            **_facts(self.manifest),
            "prompt_tokens": len(settings.prompt),
            "decode_tokens": settings.decode_tokens,
            "warmups": settings.warmups,
            "repetitions": settings.repetitions,
            "load_s": self.load_s,
            "peak_rss_bytes": self.peak_rss_bytes,
        }
        in_ms = {str(length): value.scale(1e3) for length, value in self.first_token_s.items()}
        for name, pick in (("", "median"), ("_low", "low"), ("_high", "high")):
            result[f"first_token_ms{name}"] = {
                length: getattr(value, pick) for length, value in in_ms.items()
            }
        result |= flat_json("decode_tok_per_s", self.decode_tok_per_s)
        return result | {"clients": [row.to_json() for row in self.clients]}

    def rows(self) -> list[tuple[str, str, str]]:
        """Return the figures for a reader: what, median with spread, and a blank for a limit."""
        label = f"{self.engine}: no measure of a chip's speed" if self.is_simulated else self.engine
        first_tokens = [
            (f"first token after {length}", format_measurement(value, "ms", 1e3), "")
            for length, value in self.first_token_s.items()
        ]
        return [
            ("engine", label, ""),
            ("load", f"{self.load_s:.2f} s", ""),
            ("peak memory of the host", f"{self.peak_rss_bytes / 1e9:.2f} GB", ""),
            *first_tokens,
            (
                f"decode of {self.settings.decode_tokens}",
                format_measurement(self.decode_tok_per_s, "tok/s"),
                "",
            ),
        ]


def prompt_lengths(context: int) -> tuple[int, ...]:
    """Return the lengths of prompts worth timing: doubles of 64 tokens, and the whole context."""
    doubles = [_SHORTEST_DOUBLED << power for power in range(context.bit_length())]
    return (*(length for length in doubles if length < context), context)


def run_bundle_bench(
    open_engine: Callable[[], Engine],
    settings: BundleBenchSettings,
    *,
    model: str,
    manifest: Manifest | None,
    on_step: Callable[[str], None],
) -> BundleReport:
    """Open an engine, measure it and close it.

    ``on_step`` is called with each step as it begins. Stop ids do not end the answer, so that all runs have
    the same length.
    Raises: ContextLengthError when the lengths do not fit the engine's context; RequestError when it holds
    fewer clients.
    """
    on_step("loading")
    started = time.perf_counter()
    with open_engine() as engine:
        load_s = time.perf_counter() - started
        check_clients(engine, settings.clients, settings.decode_tokens)
        first_tokens, rates = _measure(engine, settings, on_step)
        clients = measure_clients(engine, settings.clients, settings.decode_tokens, on_step)
        name, is_simulated = engine.name, engine.is_simulated
    # A vendor's bmodel runs on the same chip, whether it has a manifest or not.
    chip = manifest.chip if manifest else _VENDOR_CHIP
    return BundleReport(
        model=model,
        engine=name,
        platform=chip_platform(chip, name, is_simulated=is_simulated),
        manifest=manifest,
        settings=settings,
        load_s=load_s,
        peak_rss_bytes=peak_rss_bytes(),
        first_token_s={length: Measurement.of(times) for length, times in sorted(first_tokens.items())},
        decode_tok_per_s=Measurement.of(rates),
        clients=clients,
        is_simulated=is_simulated,
    )


def _facts(manifest: Manifest | None) -> dict[str, object]:
    """Return what was compiled, as far as the manifest says."""
    if manifest is None:
        return {}
    names = ("chip", "bits", "head", "head_output", "context")
    return {name: getattr(manifest, name) for name in names}


def _measure(
    engine: Engine, settings: BundleBenchSettings, tell: Callable[[str], None]
) -> tuple[dict[int, Sequence[float]], list[float]]:
    """Return the times to the first token by length, and the rates of decoding, of every run that counts."""
    check_room(len(settings.prompt), settings.decode_tokens, engine.max_context)
    check_room(0, max(settings.lengths, default=0), engine.max_context)
    times: dict[int, list[float]] = {}
    rates: list[float] = []
    for number in range(1 - settings.warmups, settings.repetitions + 1):
        tell("warming up" if number < 1 else f"run {number} of {settings.repetitions}")
        first_token_s, decode_s = time_answer(engine, settings.prompt, settings.decode_tokens)
        seconds_by_length = {length: time_prefill(engine, length) for length in settings.lengths}
        seconds_by_length[len(settings.prompt)] = first_token_s
        if number >= 1:
            rates.append(settings.decode_tokens / decode_s)
            for length, seconds in seconds_by_length.items():
                times.setdefault(length, []).append(seconds)
    return dict(times), rates
