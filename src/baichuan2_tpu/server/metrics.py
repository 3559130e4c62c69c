"""What Prometheus reads: the load and totals of the scheduler, and how long clients wait for tokens.

Times are measured where answers are sent, so they include the wait in the queue. Each app has its own
registry. Not here: counting (``scheduling.scheduler``).
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable, Iterator

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from baichuan2_tpu.generate.events import Event, TokenChosen
from baichuan2_tpu.server.scheduling.load import Load

__all__ = ["Metrics"]

# From a warm prefix on a TPU to a long prompt behind a full queue on two cores.
_FIRST_TOKEN_S = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
_TOKEN_S = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """Counts and times of one server; ``load`` returns the current load and totals."""

    def __init__(self, load: Callable[[], Load]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_LoadCollector(load))
        ProcessCollector(registry=self._registry)
        self._first_token_s = Histogram(
            "baichuan2_first_token_seconds",
            "Time from the arrival of a request to its first token.",
            buckets=_FIRST_TOKEN_S,
            registry=self._registry,
        )
        self._token_s = Histogram(
            "baichuan2_token_seconds",
            "Time between two tokens of an answer.",
            buckets=_TOKEN_S,
            registry=self._registry,
        )

    async def observe(self, events: AsyncGenerator[Event, None]) -> AsyncGenerator[Event, None]:
        """Pass the events of an answer on, and record when its tokens came."""
        histogram = self._first_token_s
        last_s = time.perf_counter()
        try:
            async for event in events:
                if isinstance(event, TokenChosen):
                    now_s = time.perf_counter()
                    histogram.observe(now_s - last_s)
                    histogram, last_s = self._token_s, now_s
                yield event
        finally:
            await events.aclose()

    def render(self) -> bytes:
        """Return everything in Prometheus's text format."""
        return generate_latest(self._registry)


class _LoadCollector(Collector):
    """Reads the load whenever Prometheus scrapes."""

    def __init__(self, load: Callable[[], Load]) -> None:
        self._load = load

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        for name, help_text, value in _gauges(load):
            yield GaugeMetricFamily(f"baichuan2_{name}", help_text, value)
        for name, help_text, count in _counters(load):
            yield CounterMetricFamily(f"baichuan2_{name}", help_text, count)
        requests = CounterMetricFamily("baichuan2_requests", "Requests by outcome.", labels=["outcome"])
        totals = load.totals
        for outcome in ("finished", "cancelled", "failed", "refused"):
            requests.add_metric([outcome], getattr(totals, outcome))
        yield requests


def _gauges(load: Load) -> Iterator[tuple[str, str, float]]:
    yield "requests_running", "Requests whose answers are being generated.", load.running
    yield "requests_reading", "Running requests whose prompts are still being read.", load.reading
    yield "requests_waiting", "Requests waiting in the queue.", load.waiting
    yield "sequences_idle", "Idle sequences kept for prompts that share their prefix.", load.idle_sequences
    yield "kv_bytes", "Memory used by keys and values, in bytes.", load.held_tokens * load.kv_bytes_per_token
    yield (
        "kv_bytes_limit",
        "Memory that keys and values may use, in bytes.",
        load.max_held_tokens * load.kv_bytes_per_token,
    )
    if load.rows is not None:
        yield "history_rows", "Rows of the history that all sequences share, one per token.", load.rows.total
        yield "history_rows_used", "Rows of the history that hold a token.", load.rows.used
        yield "history_rows_shared", "Rows of the history that several sequences share.", load.rows.shared
    yield "engine_faulty", "1 if the latest step of the engine failed, else 0.", load.is_faulty


def _counters(load: Load) -> Iterator[tuple[str, str, float]]:
    totals = load.totals
    yield "prompt_tokens", "Prompt tokens.", totals.prompt_tokens
    yield (
        "prompt_tokens_computed",
        "Prompt tokens that were computed, counted in the step that computes them.",
        totals.computed_tokens,
    )
    yield (
        "prompt_tokens_reused",
        "Prompt tokens that kept sequences held already.",
        totals.reused_tokens,
    )
    yield "generated_tokens", "Generated tokens.", totals.generated_tokens
    yield "answers_preempted", "Answers preempted for lack of KV memory and resumed later.", totals.preempted
    yield "engine_faults", "Steps of the engine that failed.", totals.faults
