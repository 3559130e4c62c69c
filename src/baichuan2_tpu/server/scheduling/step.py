"""One step of a server: which answers run, what each is fed, and what becomes of the engine's logits.

A step feeds one token of every running answer and a share of the new prompts in one call of the engine. An
answer that is preempted for lack of memory returns to the queue and is fed again later: an engine's logits do
not depend on how tokens are divided among calls, so it continues with the same tokens.
Not here: threads and the queue that clients fill (``scheduler``), choosing tokens (``generate.answer``).
Source: continuous batching as in Orca (OSDI '22) and vLLM; chunked prefill as in Sarathi-Serve (OSDI '24).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import BackendError, Baichuan2Error
from baichuan2_tpu.generate.answer import SCORED_ROWS
from baichuan2_tpu.generate.block_hashes import BLOCK_TOKENS
from baichuan2_tpu.generate.tracked_sequence import Feed, TrackedSequence, feed_together
from baichuan2_tpu.server.scheduling.job import Job
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from baichuan2_tpu.server.scheduling.prefill_budget import PrefillBudget, deal_tokens
from baichuan2_tpu.server.scheduling.prefix_index import PrefixIndex, Prompt
from baichuan2_tpu.server.scheduling.prefix_pool import PrefixPool

__all__ = ["Stepper", "as_own_error"]

_COPIED_TOKENS = 2048
"""Once a step has copied as many, it admits no more jobs: answers wait while keys and values are copied, of a
7B half a megabyte per token. One job is admitted in any case."""


class Stepper:
    """The jobs of an engine, waiting and running, and the sequences they use.

    Only the serving thread may touch it, so that it needs no lock. ``when_over`` is called with every job
    that has ended, once.
    Units: ``max_tokens`` bounds the tokens that have memory for keys and values; ``clock_s`` counts seconds.
    """

    def __init__(
        self,
        engine: Engine,
        settings: SchedulerSettings,
        max_tokens: int,
        *,
        clock_s: Callable[[], float],
        when_over: Callable[[Job], None],
    ) -> None:
        self._engine = engine
        self._max_running = settings.max_running
        self._clock_s = clock_s
        self._when_over = when_over
        self._pool = PrefixPool(engine, max_tokens)
        self._prefill_budget = PrefillBudget(engine.prompt_piece, settings.max_pause_s)
        self._waiting: list[Job] = []
        self._running: dict[Job, TrackedSequence] = {}  # the oldest first
        self._prompts: PrefixIndex[Job] = PrefixIndex()  # of those that run
        self._turns: dict[str, int] = {}  # when each client last had a job admitted
        self._turn = 0
        self._preempted = 0
        self._computed_tokens = 0

    @property
    def running(self) -> int:
        """Jobs that have a sequence."""
        return len(self._running)

    @property
    def idle_sequences(self) -> int:
        """Sequences kept for prompts that share their beginning."""
        return self._pool.idle_sequences

    @property
    def held_tokens(self) -> int:
        """Tokens that have memory for keys and values."""
        return self._pool.held_tokens

    @property
    def preempted(self) -> int:
        """How often a job was preempted since the start."""
        return self._preempted

    @property
    def reading(self) -> int:
        """Jobs whose prompts are being read."""
        return sum(job.is_reading for job in self._running)

    @property
    def computed_tokens(self) -> int:
        """Prompt tokens computed since the start, those of resumed answers included."""
        return self._computed_tokens

    def step(self, new_jobs: Sequence[Job]) -> bool:
        """Queue the new jobs and give every running answer its next token; False when nothing was fed.

        Raises: what the engine raises; ``fail`` is then to be called.
        """
        self._waiting += new_jobs
        self._give_up()
        self._admit()
        self._reserve_memory()
        feeds = self._choose_feeds()
        if not feeds:
            return False
        logits = self._compute(list(feeds.values()))
        self._computed_tokens += sum(len(feed.ids) for job, feed in feeds.items() if job.is_reading)
        self._give_up()
        for job, rows in zip(feeds, logits, strict=True):
            self._advance(job, rows)
        self._release()
        return True

    def probe(self) -> None:
        """Feed one token while nothing runs. Raises: what the engine raises."""
        sequence = self._pool.take(Prompt.of([0]))
        assert sequence is not None  # noqa: S101 - idle sequences make room
        try:
            sequence.feed([0])
        finally:
            self._pool.discard(sequence)

    def fail(self, error: Exception) -> None:
        """End what runs with an error, and close every sequence: none is trusted after a fault."""
        for job in list(self._running):
            self._drop(job, error)
        self._pool.clear()

    def close(self, new_jobs: Sequence[Job], error: Exception) -> None:
        """End all jobs, waiting and running, with an error, and close every sequence."""
        self._waiting += new_jobs
        for job in (*self._running, *self._waiting):
            job.ticket.put(error)
        self._release()
        self._pool.clear()

    def _give_up(self) -> None:
        """End what was cancelled or is late, running or waiting."""
        now_s = self._clock_s()
        for job in (*self._running, *self._waiting):
            if not job.is_over:
                job.give_up(now_s)
        self._release()

    def _admit(self) -> None:
        """Start waiting jobs as far as there are places and memory, and until much was copied for them."""
        self._pool.refresh()
        copied_tokens = self._pool.copied_tokens
        awaiting: set[Job] = set()  # in this step: who starts meanwhile makes nobody stop to wait
        while len(self._running) < self._max_running:
            ready = (job for job in self._waiting if job not in awaiting)
            job = min(ready, key=self._precedence, default=None)
            if job is None or self._pool.copied_tokens - copied_tokens >= _COPIED_TOKENS:
                return
            if self._awaits_prefix(job):
                awaiting.add(job)
                continue
            try:
                sequence = self._pool.take(job.prompt)
            except Exception as exc:  # noqa: BLE001 - the boundary of requests: a fault ends this job alone
                job.ticket.put(as_own_error(exc))
                self._release()
                continue
            if sequence is None:
                return
            self._start(job, sequence)

    def _start(self, job: Job, sequence: TrackedSequence) -> None:
        self._waiting.remove(job)
        self._running[job] = sequence
        self._prompts.update(job, job.prompt.block_hashes)
        self._turn += 1
        self._turns[job.client] = self._turn
        job.start(sequence)

    def _awaits_prefix(self, job: Job) -> bool:
        """Tell whether a running prompt will hold a longer beginning of this one than is held now."""
        if not self._engine.can_copy:
            return False
        prompt = job.prompt
        unfed = [
            other
            for other, sequence in self._running.items()
            if len(other.ids) - sequence.length >= BLOCK_TOKENS and other.tenant == job.tenant
        ]
        _, blocks = self._prompts.nearest(prompt.block_hashes, unfed)
        # The prompt's last id is never shared.
        blocks = min(blocks, (len(job.ids) - 1) // BLOCK_TOKENS)
        return blocks > 0 and blocks > self._pool.shared_blocks(prompt)

    def _precedence(self, job: Job) -> tuple[bool, int]:
        """Return what orders the queue: preempted jobs come first, then clients take turns."""
        return not job.was_run, self._turns.get(job.client, 0)

    def _reserve_memory(self) -> None:
        """Reserve memory for the next token of every answer; the youngest are preempted for the others."""
        while not self._pool.reserve({sequence: len(job.ids) for job, sequence in self._running.items()}):
            self._preempt(next(reversed(self._running)))

    def _preempt(self, job: Job) -> None:
        self._pool.give_back(self._stop(job))
        job.preempt()
        self._waiting.insert(0, job)
        self._preempted += 1

    def _choose_feeds(self) -> dict[Job, Feed]:
        """Choose what each job is fed: an answer its latest token, a prompt its share of the budget."""
        missing = {job: len(job.ids) - sequence.length for job, sequence in self._running.items()}
        prompts = [job for job in missing if missing[job] > 1]
        answers = len(missing) - len(prompts)
        budget = self._prefill_budget.tokens(is_answering=answers > 0)
        budget = max(budget, self._engine.spare_tokens(answers) if answers else 0)
        if any(job.is_scoring for job in prompts):
            budget = min(budget, SCORED_ROWS)
        shares = deal_tokens(budget, [missing[job] for job in prompts])
        counts = missing | dict(zip(prompts, shares, strict=True))
        return {job: job.feed(self._running[job], count) for job, count in counts.items() if count}

    def _compute(self, feeds: list[Feed]) -> list[NDArray[np.float32]]:
        """Feed all sequences in one call of the engine, and learn how long prompts make it."""
        start_s = self._clock_s()
        logits = feed_together(feeds)
        prompt_tokens = sum(len(feed.ids) for feed in feeds if len(feed.ids) > 1)
        self._prefill_budget.learn(prompt_tokens, self._clock_s() - start_s)
        return logits

    def _advance(self, job: Job, logits: NDArray[np.float32]) -> None:
        """Score a job's prompt or choose its next token; logits that are not finite end this job alone."""
        if job.is_over:  # given up while it was computed
            return
        job.note_fed(self._running[job])
        if not len(logits):
            return
        try:
            job.advance(logits, self._running[job].length)
        except Baichuan2Error as exc:
            self._drop(job, exc)

    def _release(self) -> None:
        """Forget the jobs that are over, and keep their sequences."""
        for job in [job for job in self._running if job.is_over]:
            self._pool.give_back(self._stop(job))
            self._when_over(job)
        for job in [job for job in self._waiting if job.is_over]:
            self._waiting.remove(job)
            self._when_over(job)
        clients = {job.client for job in (*self._running, *self._waiting)}
        self._turns = {client: turn for client, turn in self._turns.items() if client in clients}

    def _drop(self, job: Job, error: Exception) -> None:
        """End a job and close its sequence."""
        if not job.is_over:
            job.ticket.put(error)
        self._pool.discard(self._stop(job))
        self._when_over(job)

    def _stop(self, job: Job) -> TrackedSequence:
        """Take a job out of those that run, and return its sequence."""
        self._prompts.discard(job)
        return self._running.pop(job)


def as_own_error(fault: Exception) -> Baichuan2Error:
    """Return a fault as an error of this package."""
    if isinstance(fault, Baichuan2Error):
        return fault
    error = BackendError(f"the engine failed: {type(fault).__name__}: {fault}; see the server's log")
    error.__cause__ = fault
    return error
