"""Measure where the time of a token goes, by kind of work, beside the limits of the machine.

Three states are looked at: a prompt that is read, and answers after a short and after a long one. Wall time
is counted around each loop of the thread pool, so it includes what threads wait for each other.
Not here: counting (``native/profile.h``), printing (``cli``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from baichuan2_tpu.bench.cpu import Ceilings, measure_ceilings
from baichuan2_tpu.bench.table import processor_platform
from baichuan2_tpu.bench.timing import make_up_tokens
from baichuan2_tpu.engine.base import Chunk, Engine, Sequence
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.markdown import markdown_table
from baichuan2_tpu.svg_bars import Bar, Panel, draw_bars

__all__ = ["Phase", "ProfileReport", "ProfileSettings", "WorkTotal", "run_profile"]

_COLUMNS = ("", "ms per token", "share", "GB/s", "of the limit", "GMAC/s", "of the limit")
_PIECE_TOKENS = 256  # a prompt is fed in pieces of this, so that Ctrl-C is noticed


@dataclass(frozen=True, slots=True)
class ProfileSettings:
    """What to measure. Units: lengths count tokens.

    ``prompt_tokens`` and ``context_tokens`` are held when the two answers of ``decode_tokens`` begin; the
    context is cut to what the engine can hold.
    """

    prompt_tokens: int = 512
    context_tokens: int = 4096
    decode_tokens: int = 16
    threads: int = 1


@dataclass(frozen=True, slots=True)
class WorkTotal:
    """One kind of work in one phase. Units: ``read_bytes`` of weights, keys and values."""

    name: str
    seconds: float
    read_bytes: int
    macs: int


@dataclass(frozen=True, slots=True)
class Phase:
    """What was measured over ``tokens`` tokens."""

    name: str
    tokens: int
    seconds: float
    works: tuple[WorkTotal, ...]

    @property
    def complete_works(self) -> tuple[WorkTotal, ...]:
        """All work, the longest first, and what no kind of work accounts for."""
        rest = max(0.0, self.seconds - sum(work.seconds for work in self.works))
        works = sorted(self.works, key=lambda work: -work.seconds)
        return (*works, WorkTotal("everything else", rest, 0, 0))


@dataclass(frozen=True, slots=True)
class ProfileReport:
    """The phases, with what produced them; ``kernels`` is the instruction set."""

    model: str
    platform: str
    kernels: str
    phases: tuple[Phase, ...]
    ceilings: Ceilings

    def lines(self) -> Iterator[str]:
        """Yield a Markdown table for each phase, below its name."""
        yield f"{self.model} on {self.platform}, {self.kernels} kernels"
        for phase in self.phases:
            rate = phase.tokens / phase.seconds
            yield ""
            yield f"{phase.name}: {1e3 / rate:.2f} ms per token, {rate:.1f} tok/s"
            yield ""
            yield from markdown_table(_COLUMNS, [self._cells(phase, work) for work in phase.complete_works])

    def draw(self) -> str:
        """Return a picture of the phases as SVG: each kind of work as long as its time per token."""
        panels = [
            Panel(
                f"{phase.name}: {1e3 * phase.seconds / phase.tokens:.2f} ms per token",
                [self._bar(phase, work) for work in phase.complete_works if work.seconds > 0],
                phase.name,
            )
            for phase in self.phases
        ]
        return draw_bars(self.model, f"measured on {self.platform}, {self.kernels} kernels", panels)

    def to_json(self) -> dict[str, object]:
        """Return one object."""
        return {
            "model": self.model,
            "platform": self.platform,
            "kernels": self.kernels,
            "phases": [asdict(phase) for phase in self.phases],
            "read_bytes_per_s_ceiling": self.ceilings.read_bytes_per_s,
            "multiply_mac_per_s_ceiling": self.ceilings.multiply_mac_per_s,
        }

    def _cells(self, phase: Phase, work: WorkTotal) -> tuple[str, ...]:
        reads = _rate(work.read_bytes, work.seconds, self.ceilings.read_bytes_per_s)
        macs = _rate(work.macs, work.seconds, self.ceilings.multiply_mac_per_s)
        time_ms = 1e3 * work.seconds / phase.tokens
        return work.name, f"{time_ms:.3f}", f"{work.seconds / phase.seconds:.1%}", *reads, *macs

    def _bar(self, phase: Phase, work: WorkTotal) -> Bar:
        _, time_ms, share, gigabytes, _, macs, _ = self._cells(phase, work)
        rates = [f"{gigabytes} GB/s" if gigabytes else "", f"{macs} GMAC/s" if macs else ""]
        note = ", ".join([f"{time_ms} ms", share, *filter(None, rates)])
        return Bar(work.name, {"time per token": 1e3 * work.seconds / phase.tokens}, note)


def _rate(count: int, seconds: float, ceiling: float | None) -> tuple[str, str]:
    """Return a rate in thousands of millions, and its share of the limit; blanks where nothing is counted."""
    if count == 0 or seconds == 0:
        return "", ""
    rate = count / seconds
    return f"{rate / 1e9:.1f}", "" if ceiling is None else f"{rate / ceiling:.0%}"


def run_profile(
    open_engine: Callable[[], Engine],
    settings: ProfileSettings,
    *,
    model: str,
    ceilings: Callable[[int, int], Ceilings] = measure_ceilings,
    on_step: Callable[[str], None] | None = None,
) -> ProfileReport:
    """Open an engine, measure its phases, close it, then measure the machine.

    Raises: RequestError for another engine than the cpu; ContextLengthError for a context that is too short.
    """
    tell = on_step or _ignore
    tell("loading")
    with open_engine() as engine:
        if not isinstance(engine, CpuEngine):
            raise RequestError(f"the {engine.name} engine counts no kinds of work; a profile is of the cpu's")
        phases = _measure(engine, settings, tell)
        kernels, config = engine.kernels, engine.config
    tell("measuring the machine")
    bits = config.quantization.bits if config.quantization else 8
    limits = ceilings(settings.threads, bits)
    return ProfileReport(model, processor_platform(settings.threads), kernels, phases, limits)


def _ignore(step: str) -> None:
    del step


def _measure(engine: CpuEngine, settings: ProfileSettings, tell: Callable[[str], None]) -> tuple[Phase, ...]:
    prompt, answer = settings.prompt_tokens, settings.decode_tokens
    context = min(settings.context_tokens, engine.max_context - answer)
    with engine.open_sequence() as sequence:
        tell("warming up")
        _feed(sequence, engine, min(prompt, _PIECE_TOKENS))
        sequence.truncate(0)
        phases = [
            _measure_prefill(engine, sequence, prompt, tell),
            _measure_decode(engine, sequence, answer, tell),
        ]
        if context > sequence.length:
            phases.append(_measure_prefill(engine, sequence, context, tell))
            phases.append(_measure_decode(engine, sequence, answer, tell))
    return tuple(phases)


def _measure_prefill(
    engine: CpuEngine, sequence: Sequence, length: int, tell: Callable[[str], None]
) -> Phase:
    start = sequence.length
    name = f"prefill of {length}" if start == 0 else f"prefill from {start} to {length}"
    tell(name)
    return _time(engine, name, length - start, lambda: _feed(sequence, engine, length - start))


def _measure_decode(engine: CpuEngine, sequence: Sequence, tokens: int, tell: Callable[[str], None]) -> Phase:
    name = f"decode at {sequence.length}"
    tell(name)

    def decode() -> None:
        for _ in range(tokens):
            engine.forward([Chunk(sequence, [1], 1)])

    return _time(engine, name, tokens, decode)


def _feed(sequence: Sequence, engine: CpuEngine, tokens: int) -> None:
    for start in range(0, tokens, _PIECE_TOKENS):
        count = min(_PIECE_TOKENS, tokens - start)
        prompt = make_up_tokens(engine.config.vocabulary_size, count)
        engine.forward([Chunk(sequence, prompt, int(start + count == tokens))])


def _time(engine: CpuEngine, name: str, tokens: int, work: Callable[[], None]) -> Phase:
    with engine.profile() as works:
        started = time.perf_counter()
        work()
        seconds = time.perf_counter() - started
    return Phase(name, tokens, seconds, tuple(WorkTotal(*total) for total in works))
