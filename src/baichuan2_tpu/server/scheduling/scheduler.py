"""Many answers at once on one engine: who runs in each step, and how much of each prompt.

A step feeds one token of every running answer and a share of the new prompts, in one call of the engine. An
answer stopped for want of memory goes back to the queue and is fed again later: an engine's logits do not
depend on how tokens are cut into calls, so it goes on with the same tokens.
Not here: choosing tokens (``generate.answer``), which sequence a prompt goes on from (``prefixes``), HTTP.
Source: continuous batching as in Orca (OSDI '22) and vLLM; prompts in pieces as in Sarathi-Serve (OSDI '24).
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Condition, Thread
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import BackendError, Baichuan2Error, QueueFull, RequestError, ShutdownError
from baichuan2_tpu.generate.answer import SCORED_ROWS, Answer
from baichuan2_tpu.generate.loop import check_prompt
from baichuan2_tpu.generate.tracked_sequence import Feed, TrackedSequence, common_prefix, feed_together
from baichuan2_tpu.memory import memory_need
from baichuan2_tpu.server.scheduling.job import Job
from baichuan2_tpu.server.scheduling.load import Load, SchedulerSettings, Totals, max_held_tokens
from baichuan2_tpu.server.scheduling.prefill_budget import Pace, shares
from baichuan2_tpu.server.scheduling.prefix_pool import PrefixPool
from baichuan2_tpu.server.scheduling.ticket import Request, Ticket
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["Load", "QueueFull", "Request", "Scheduler", "SchedulerSettings", "Ticket", "Totals"]

_log = logging.getLogger(__name__)

_WORTH_WAITING_FOR = 16  # tokens of a common beginning: one small piece of a prompt
_PROBE_S = 30  # between trials of an engine that failed
_NEWEST = 0.2  # how much the latest answer counts in the mean time an answer takes


class Scheduler:
    """Serves requests on an engine, which only its thread uses from ``start`` to ``close``.

    Without ``start``, ``step`` does the same in the caller's thread. ``clock_s`` counts seconds.
    Raises: RequestError when the memory allowed does not hold one full context.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        settings: SchedulerSettings | None = None,
        *,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._engine = engine
        self._tokenizer = tokenizer
        self._settings = settings or SchedulerSettings()
        self._clock_s = clock_s
        max_tokens = max_held_tokens(engine, self._settings)
        self._pool = PrefixPool(engine, max_tokens)
        self._pace = Pace(engine.prompt_piece, self._settings.max_pause_s)
        self._running: dict[Job, TrackedSequence] = {}  # the oldest first; only the serving thread's
        self._turns: dict[str, int] = {}  # each client's latest, likewise
        self._turn = 0
        self._is_faulty = False
        self._changed = Condition()  # guards what follows
        self._waiting: list[Job] = []
        self._counts: Counter[str] = Counter()
        self._answer_s = 0.0
        self._end_s = math.inf
        token_bytes = memory_need(engine.config).kv_bytes_per_token
        self._load = Load(0, 0, 0, 0, max_tokens, token_bytes, is_faulty=False, totals=Totals())
        self._thread = Thread(target=self._serve, name="scheduler")

    def submit(self, requests: Sequence[Request]) -> list[Ticket]:
        """Queue all requests, or none; from any thread.

        Raises: RequestError, ContextLengthError for what can never be served; QueueFull; ShutdownError after
        ``close``.
        """
        if len(requests) > self._max_taken:
            raise RequestError(
                f"{len(requests)} answers are asked for at once; {self._max_taken} or fewer are allowed"
            )
        jobs = [self._job(request) for request in requests]
        with self._changed:
            self._check_place(len(jobs))
            self._waiting += jobs
            self._changed.notify_all()
        return [job.ticket for job in jobs]

    def step(self) -> bool:
        """Give every running answer its next token; return whether there was anything to do.

        Side effect: when the engine fails, what runs ends with an error and what was kept is dropped.
        """
        try:
            was_busy = self._step()
            self._is_faulty = self._is_faulty and not was_busy
        except Exception as exc:  # noqa: BLE001 - the boundary of requests: a fault ends them, not the server
            self._recover(exc)
            was_busy = True
        self._publish()
        return was_busy

    def load(self) -> Load:
        """Return what is done now, from any thread."""
        with self._changed:
            return replace(self._load, waiting=len(self._waiting), totals=Totals(**self._counts))

    def start(self) -> None:
        """Begin to serve, in a thread of its own."""
        self._thread.start()

    def close(self, grace_s: float = 0) -> None:
        """Take no more requests, serve those taken for ``grace_s``, and fail the others with ShutdownError.

        Side effect: every sequence is closed; the engine stays open. Closing again, while it lasts, can only
        shorten the grace.
        """
        with self._changed:
            self._end_s = min(self._end_s, self._clock_s() + grace_s)
            self._changed.notify_all()
        if self._thread.ident is None:
            self._serve()
        else:
            self._thread.join()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _max_taken(self) -> int:
        return self._settings.max_running + self._settings.max_waiting

    def _job(self, request: Request) -> Job:
        engine = self._engine
        check_prompt(engine, request.prompt_ids, request.settings)
        _check_vocabulary(request.prompt_ids, engine.config.vocabulary_size)
        answer = Answer(
            self._tokenizer,
            request.prompt_ids,
            request.settings,
            eos_ids=engine.config.eos_ids,
            max_context=engine.max_context,
            clock_s=self._clock_s,
        )
        return Job(request, answer, self._clock_s())

    def _check_place(self, count: int) -> None:
        if self._end_s < math.inf:
            raise ShutdownError("the server stops and takes no more requests; try another one")
        taken = len(self._waiting) + len(self._running)
        missing = taken + count - self._max_taken
        if missing > 0:
            self._counts["refused"] += count
            # Little's law: of as many as are here one ends in that time, on average.
            retry_after_s = max(1, math.ceil(missing * self._answer_s / taken))
            raise QueueFull(
                f"{taken} requests are served or wait, {self._max_taken} may in all; "
                f"try again in {retry_after_s} s",
                retry_after_s,
            )

    def _serve(self) -> None:
        while self._wait():
            if self._has_jobs:
                self.step()
            else:
                self._probe()
        error = ShutdownError("the server stopped before the answer was ready; try another one")
        with self._changed:
            jobs = [*self._running, *self._waiting]
        for job in jobs:
            job.ticket.put(error)
        self._release()
        self._pool.clear()
        self._publish()

    def _wait(self) -> bool:
        """Wait for a job, or for the time to try a faulty engine; return False at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._has_jobs or self._end_s < math.inf, _PROBE_S if self._is_faulty else None
            )
            return self._clock_s() < self._end_s and (self._has_jobs or self._end_s == math.inf)

    def _probe(self) -> None:
        """Feed a faulty engine a token: a server that is not ready may get no request that would."""
        try:
            with TrackedSequence(self._engine) as sequence:
                sequence.feed([0])
            self._is_faulty = False
        except Exception as exc:  # noqa: BLE001 - whatever it was, the engine is not back
            _log.warning("the engine still fails: %s", exc)
        self._publish()

    @property
    def _has_jobs(self) -> bool:
        return bool(self._waiting or self._running)

    def _step(self) -> bool:
        self._give_up()
        self._admit()
        self._take_memory()
        feeds = self._feeds()
        if not feeds:
            return False
        start_s = self._clock_s()
        logits = feed_together(list(feeds.values()))
        prompt_tokens = sum(len(feed.ids) for feed in feeds.values() if len(feed.ids) > 1)
        self._pace.note(prompt_tokens, self._clock_s() - start_s)
        self._give_up()
        for job, rows in zip(feeds, logits, strict=True):
            if len(rows) and not job.is_over:
                self._advance(job, rows)
        self._release()
        return True

    def _give_up(self) -> None:
        """End what was cancelled or is late, running or waiting."""
        now_s = self._clock_s()
        with self._changed:
            jobs = [*self._running, *self._waiting]
        for job in jobs:
            if not job.is_over:
                job.give_up(now_s)
        self._release()

    def _admit(self) -> None:
        """Start what waits, as far as there is place and memory."""
        while len(self._running) < self._settings.max_running:
            with self._changed:
                ready = [job for job in self._waiting if not self._awaits_beginning(job)]
            job = min(ready, key=self._precedence, default=None)
            if job is None:
                return
            try:
                sequence = self._pool.take(job.ids)
            except Exception as exc:  # noqa: BLE001 - the boundary of requests, as in ``step``
                job.ticket.put(_told(exc))
                self._release()
                continue
            if sequence is None:
                return
            with self._changed:
                self._waiting.remove(job)
                self._running[job] = sequence
            self._turn += 1
            self._turns[job.client] = self._turn
            job.start(sequence)

    def _awaits_beginning(self, job: Job) -> bool:
        """Tell whether a prompt that runs begins alike, and will be copied when it was fed."""
        if not self._engine.can_copy:
            return False
        longest = len(job.ids) - 1
        return any(
            # Most answers are past their prompt, and most queues long: ids are compared where it can matter.
            min(len(other.ids), longest) - sequence.length >= _WORTH_WAITING_FOR
            and common_prefix(other.ids, job.ids[:-1]) - sequence.length >= _WORTH_WAITING_FOR
            for other, sequence in self._running.items()
        )

    def _precedence(self, job: Job) -> tuple[bool, int]:
        """Return what orders the queue: what was put off goes on first, then clients take turns."""
        return not job.was_run, self._turns.get(job.client, 0)

    def _take_memory(self) -> None:
        """Take memory for the next token of every answer; the youngest are put off for the others."""
        for job, sequence in list(self._running.items()):
            while job in self._running and not self._pool.reserve(sequence, len(job.ids)):
                self._put_off(next(reversed(self._running)))

    def _put_off(self, job: Job) -> None:
        with self._changed:
            self._pool.give_back(self._running.pop(job))
            self._waiting.insert(0, job)
            self._counts["put_off"] += 1

    def _feeds(self) -> dict[Job, Feed]:
        """Choose what each job is fed: an answer its latest token, a prompt its share."""
        missing = {job: len(job.ids) - sequence.length for job, sequence in self._running.items()}
        prompts = [job for job in missing if missing[job] > 1]
        budget = self._pace.budget(is_answering=len(prompts) < len(missing))
        if any(job.is_scoring for job in prompts):
            budget = min(budget, SCORED_ROWS)
        given = shares(budget, [missing[job] for job in prompts])
        counts = missing | dict(zip(prompts, given, strict=True))
        return {job: job.feed(self._running[job], count) for job, count in counts.items() if count}

    def _advance(self, job: Job, logits: NDArray[np.float32]) -> None:
        """Score a job's prompt or choose its next token; logits that are no numbers end this job alone."""
        try:
            job.advance(logits, self._running[job].length)
        except Baichuan2Error as exc:
            self._drop(job, exc)

    def _release(self) -> None:
        """Forget the jobs that are over, and keep their sequences."""
        with self._changed:
            for job in [one for one in self._running if one.is_over]:
                self._pool.give_back(self._running.pop(job))
                self._count(job)
            for job in [one for one in self._waiting if one.is_over]:
                self._waiting.remove(job)
                self._count(job)
            clients = {job.client for job in (*self._running, *self._waiting)}
        self._turns = {client: turn for client, turn in self._turns.items() if client in clients}

    def _recover(self, fault: Exception) -> None:
        """End what runs with an error; nothing an engine held before a fault is trusted."""
        _log.error("a step failed; %d requests end with an error", len(self._running), exc_info=fault)
        error = _told(fault)
        for job in list(self._running):
            self._drop(job, error)
        self._pool.clear()
        self._is_faulty = True
        with self._changed:
            self._counts["faults"] += 1

    def _drop(self, job: Job, error: Exception) -> None:
        """End a job and close its sequence."""
        if not job.is_over:
            job.ticket.put(error)
        with self._changed:
            self._pool.discard(self._running.pop(job))
            self._count(job)

    def _count(self, job: Job) -> None:
        """Add a job that is over to the totals."""
        stats = job.stats
        self._counts[job.outcome] += 1
        self._counts["prompt_tokens"] += stats.prompt_tokens if job.was_run else 0
        self._counts["reused_tokens"] += stats.reused_tokens
        self._counts["generated_tokens"] += stats.generated_tokens
        elapsed_s = self._clock_s() - job.start_s
        self._answer_s += (elapsed_s - self._answer_s) * (_NEWEST if self._answer_s else 1)

    def _publish(self) -> None:
        """Tell other threads what is done now."""
        with self._changed:
            self._load = replace(
                self._load,
                running=len(self._running),
                idle_sequences=self._pool.idle_sequences,
                held_tokens=self._pool.held_tokens,
                is_faulty=self._is_faulty,
            )


def _check_vocabulary(ids: Sequence[int], size: int) -> None:
    wrong = next((token_id for token_id in ids if not 0 <= token_id < size), None)
    if wrong is not None:
        raise RequestError(f"token id {wrong} is not in the vocabulary; 0 to {size - 1} are allowed")


def _told(fault: Exception) -> Baichuan2Error:
    """Return a fault as an error of this package."""
    if isinstance(fault, Baichuan2Error):
        return fault
    error = BackendError(f"the engine failed: {type(fault).__name__}: {fault}; see the server's log")
    error.__cause__ = fault
    return error
