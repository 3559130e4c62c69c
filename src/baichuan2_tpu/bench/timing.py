"""What every benchmark here shares: the vendor's prompt, the timing of an engine, medians with their range.

Not here: what is measured on which engine (``cpu``, ``compiled``).
Source of the prompt: the vendor's demonstration asks "请使用C++写一段冒泡排序算法。".
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from typing_extensions import Self

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.engine.base import Chunk, Engine

__all__ = [
    "VENDOR_PROMPT",
    "VENDOR_PROMPT_IDS",
    "Measurement",
    "flat_json",
    "format_measurement",
    "make_up_tokens",
    "peak_rss_bytes",
    "time_answer",
    "time_prefill",
    "vendor_prompt_ids",
]

VENDOR_PROMPT = "请使用C++写一段冒泡排序算法。"
VENDOR_PROMPT_IDS = (195, 92676, 1964, 92344, 62, 62, 93041, 5662, 93898, 93661, 22533, 18176, 66, 196)
"""``VENDOR_PROMPT`` as one user turn of Baichuan2, in the ids of the official tokenizer."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """Median, least and greatest of a value measured several times."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))

    def scale(self, factor: float) -> Measurement:
        """Return the same in another unit."""
        return Measurement(self.median * factor, self.low * factor, self.high * factor)


def flat_json(name: str, measured: Measurement | None) -> dict[str, float | None]:
    """Return the median under ``name``, and the least and the greatest under names of their own."""
    return {
        name: measured.median if measured else None,
        f"{name}_low": measured.low if measured else None,
        f"{name}_high": measured.high if measured else None,
    }


def format_measurement(measured: Measurement | None, unit: str, factor: float = 1.0) -> str:
    """Write a measurement for a reader; a blank for none."""
    if measured is None:
        return ""
    shown = measured.scale(factor)
    return f"{shown.median:.2f} {unit} ({shown.low:.2f} to {shown.high:.2f})"


def vendor_prompt_ids(config: ModelConfig) -> tuple[int, ...]:
    """Return the vendor's prompt in official ids, folded into the vocabulary where that is smaller."""
    return tuple(token % config.vocabulary_size for token in VENDOR_PROMPT_IDS)


def peak_rss_bytes() -> int:
    """Return the peak memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss, this counts from the start of a process that a large one has started.
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def time_answer(engine: Engine, prompt: Sequence[int], decode_tokens: int) -> tuple[float, float]:
    """Answer a prompt greedily; return the time to the first token and the time of the others."""
    with engine.open_sequence() as sequence:
        started = time.perf_counter()
        token = _greedy(engine, Chunk(sequence, prompt))
        first = time.perf_counter()
        # A stop id does not end it: every repetition must have the same length.
        for _ in range(decode_tokens):
            token = _greedy(engine, Chunk(sequence, (token,)))
        return first - started, time.perf_counter() - first


def make_up_tokens(vocabulary_size: int, tokens: int) -> list[int]:
    """Return different token ids: 8-bit weights are multiplied faster if one token repeats than in a text."""
    return [token % vocabulary_size for token in range(1000, 1000 + tokens)]


def time_prefill(engine: Engine, tokens: int) -> float:
    """Read a long prompt of made-up tokens; return the time until its last logits."""
    # Values do not change the time; running numbers keep rows of the embedding apart.
    prompt = make_up_tokens(engine.config.vocabulary_size, tokens)
    with engine.open_sequence() as sequence:
        started = time.perf_counter()
        engine.forward([Chunk(sequence, prompt)])
        return time.perf_counter() - started


def _greedy(engine: Engine, chunk: Chunk) -> int:
    return int(np.argmax(engine.forward([chunk])[0][-1]))
