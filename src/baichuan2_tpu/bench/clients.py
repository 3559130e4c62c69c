"""Measure several answers at once: how long a step of all takes, and what it asks of the device.

Not here: answers that come and go (``server.scheduling``), one answer alone (``cpu``, ``compiled``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass, replace

import numpy as np

from baichuan2_tpu.bench.timing import Measurement, flat_json
from baichuan2_tpu.engine.base import Chunk, Engine, check_room
from baichuan2_tpu.engine.device.base import DeviceCounts
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.markdown import markdown_table

__all__ = ["ClientsMeasurement", "check_clients", "clients_table", "measure_clients"]

_PROMPT_TOKENS = 4
"""Short, so that the time is that of the weights and not of the history."""
_COLUMNS = (
    "clients",
    "ms per step",
    "tokens per second",
    "launches per step",
    "waits per step",
    "device copies per step",
    "bytes uploaded per step",
)


@dataclass(frozen=True, slots=True)
class ClientsMeasurement:
    """Steps of ``clients`` answers at once, one token of each per step; ``steps`` of them were measured."""

    clients: int
    steps: int
    step_s: Measurement
    counts: DeviceCounts | None
    """What the device did in all steps; None for an engine without one."""

    @property
    def tok_per_s(self) -> float:
        """Tokens of all answers together, by the median step."""
        return self.clients / self.step_s.median

    @property
    def counts_per_step(self) -> tuple[float | None, ...]:
        """Launches, waits, copies on the device and uploaded bytes of a step."""
        if self.counts is None:
            return (None,) * 4
        counts = self.counts
        totals = (counts.launches, counts.waits, counts.copies, counts.uploaded_bytes)
        return tuple(total / self.steps for total in totals)

    def to_json(self) -> dict[str, object]:
        """Return one flat object; what an engine without a device cannot count is None."""
        names = ("launches", "waits", "device_copies", "uploaded_bytes")
        counts = {f"{name}_per_step": count for name, count in zip(names, self.counts_per_step, strict=True)}
        return {
            "clients": self.clients,
            "steps": self.steps,
            **flat_json("step_ms", self.step_s.scale(1e3)),
            "tok_per_s": self.tok_per_s,
            **counts,
        }


def clients_table(measured: Sequence[ClientsMeasurement]) -> list[str]:
    """Return the lines of a Markdown table; a blank for what cannot be counted."""
    return markdown_table(_COLUMNS, [_cells(row) for row in measured])


def check_clients(engine: Engine, clients: Sequence[int], steps: int) -> None:
    """Check that the engine can hold so many answers at once.

    Raises: RequestError naming both numbers; ContextLengthError when one answer alone does not fit.
    """
    # One token comes of the prompt, and the last one is not fed.
    length = _PROMPT_TOKENS + steps
    check_room(_PROMPT_TOKENS, steps, engine.max_context)
    most = engine.sequences_of(length)
    for count in clients:
        if not 1 <= count <= most:
            raise RequestError(
                f"{count} clients cannot be measured: the engine holds 1 to {most} answers of {length} "
                "tokens; choose fewer with --clients, or compile with more --rows"
            )


def measure_clients(
    engine: Engine, clients: Sequence[int], steps: int, tell: Callable[[str], None]
) -> tuple[ClientsMeasurement, ...]:
    """Measure ``steps`` greedy steps of each number of answers at once."""
    measured: list[ClientsMeasurement] = []
    for count in clients:
        tell(f"{count} client{'' if count == 1 else 's'} at once")
        measured.append(_measure(engine, count, steps))
    return tuple(measured)


def _measure(engine: Engine, clients: int, steps: int) -> ClientsMeasurement:
    with ExitStack() as stack:
        sequences = [stack.enter_context(engine.open_sequence()) for _ in range(clients)]
        size = engine.config.vocabulary_size
        # Each prompt has other tokens: prompts that begin alike could share their history.
        prompts = np.arange(1000, 1000 + clients * _PROMPT_TOKENS).reshape(clients, -1) % size
        chunks = [
            Chunk(sequence, prompt.tolist()) for sequence, prompt in zip(sequences, prompts, strict=True)
        ]
        tokens = _choose(engine, chunks)
        before = _copy_counts(engine)
        times: list[float] = []
        for _ in range(steps):
            started = time.perf_counter()
            tokens = _choose(
                engine,
                [Chunk(sequence, (token,)) for sequence, token in zip(sequences, tokens, strict=True)],
            )
            times.append(time.perf_counter() - started)
        after = _copy_counts(engine)
    return ClientsMeasurement(clients, steps, Measurement.of(times), _subtract(after, before))


def _choose(engine: Engine, chunks: Sequence[Chunk]) -> list[int]:
    return [int(np.argmax(logits[-1])) for logits in engine.forward(chunks)]


def _copy_counts(engine: Engine) -> DeviceCounts | None:
    """Return the counts as they are now; the engine's own count further."""
    return None if engine.device_counts is None else replace(engine.device_counts)


def _subtract(after: DeviceCounts | None, before: DeviceCounts | None) -> DeviceCounts | None:
    if after is None or before is None:
        return None
    return DeviceCounts(*(new - old for new, old in zip(astuple(after), astuple(before), strict=True)))


def _cells(row: ClientsMeasurement) -> tuple[str, ...]:
    counts = ("" if count is None else f"{count:,.10g}" for count in row.counts_per_step)
    return str(row.clients), f"{row.step_s.median * 1e3:.2f}", f"{row.tok_per_s:.2f}", *counts
