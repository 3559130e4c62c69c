"""Many answers at once on one engine: the queue that any thread may fill, and the thread that serves it.

Not here: what one step does (``step``), choosing tokens (``generate.answer``), HTTP (``server.transport``).
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

from typing_extensions import Self

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import QueueFull, RequestError, ShutdownError
from baichuan2_tpu.generate.answer import Answer
from baichuan2_tpu.generate.loop import check_prompt
from baichuan2_tpu.memory import memory_need
from baichuan2_tpu.server.scheduling.job import Job
from baichuan2_tpu.server.scheduling.load import Load, SchedulerSettings, Totals, max_held_tokens
from baichuan2_tpu.server.scheduling.step import Stepper, as_own_error
from baichuan2_tpu.server.scheduling.ticket import Request, Ticket
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["Scheduler"]

_log = logging.getLogger(__name__)

_PROBE_S = 30  # between trials of an engine that failed
_NEWEST_WEIGHT = 0.2  # of the latest answer in the mean time an answer takes


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
        self._clock_s = clock_s
        settings = settings or SchedulerSettings()
        self.max_jobs = settings.max_running + settings.max_waiting
        """Answers that may run or wait at once."""
        max_tokens = max_held_tokens(engine, settings)
        # These two belong to the thread that calls ``step``.
        self._stepper = Stepper(engine, settings, max_tokens, clock_s=clock_s, when_over=self._count)
        self._is_faulty = False
        self._changed = Condition()  # guards what follows
        self._new_jobs: list[Job] = []
        self._jobs = 0  # those not over: new, waiting and running ones
        self._counts: Counter[str] = Counter()
        self._answer_s = 0.0
        self._trials = 0  # how often the engine was used, with success or without
        self._is_trial_due = False
        self._end_s = math.inf
        token_bytes = memory_need(engine.config).kv_bytes_per_token
        self._load = Load(
            0, 0, 0, 0, 0, max_tokens, token_bytes, rows=engine.row_use, is_faulty=False, totals=Totals()
        )
        self._thread = Thread(target=self._serve, name="scheduler")

    def submit(self, requests: Sequence[Request]) -> list[Ticket]:
        """Queue all requests, or none; from any thread.

        Raises: RequestError, ContextLengthError for what can never be served; QueueFull; ShutdownError after
        ``close``.
        """
        if len(requests) > self.max_jobs:
            raise RequestError(
                f"the request asks for {len(requests)} answers at once; at most {self.max_jobs} are allowed"
            )
        jobs = [self._new_job(request) for request in requests]
        with self._changed:
            self._check_capacity(len(jobs))
            self._new_jobs += jobs
            self._jobs += len(jobs)
            self._changed.notify_all()
        return [job.ticket for job in jobs]

    def step(self) -> bool:
        """Give every running answer its next token; return whether there was anything to do.

        Side effect: when the engine fails, running answers end with an error and kept sequences are closed.
        """
        try:
            was_busy = self._stepper.step(self._take_new_jobs())
            self._is_faulty = self._is_faulty and not was_busy
        except Exception as exc:  # noqa: BLE001 - the boundary of requests: a fault ends them, not the server
            self._recover(exc)
            was_busy = True
        if was_busy:
            self._note_trial()
        self._publish()
        return was_busy

    def load(self) -> Load:
        """Return the current load and the totals so far; from any thread."""
        with self._changed:
            waiting = self._jobs - self._load.running
            return replace(self._load, waiting=waiting, totals=Totals(**self._counts))

    def prove(self) -> None:
        """Wait until the engine was used once more, if need be for one token; from any thread.

        Whether it failed is in ``load``. Returns at once after ``close``.
        """
        with self._changed:
            trials = self._trials
            self._is_trial_due = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._trials != trials or self._end_s < math.inf)

    def start(self) -> None:
        """Begin to serve, in a thread of its own."""
        self._thread.start()

    def close(self, grace_s: float = 0) -> None:
        """Refuse new requests, serve those already queued for ``grace_s``, and fail the rest (ShutdownError).

        Side effect: every sequence is closed; the engine stays open. A second call meanwhile can only shorten
        the grace period.
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

    def _new_job(self, request: Request) -> Job:
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

    def _check_capacity(self, count: int) -> None:
        if self._end_s < math.inf:
            raise ShutdownError("the server is shutting down and takes no new requests; try another server")
        missing = self._jobs + count - self.max_jobs
        if missing > 0:
            self._counts["refused"] += count
            # Little's law: of the jobs in the system one ends in that time, on average.
            retry_after_s = max(1, math.ceil(missing * self._answer_s / self._jobs))
            raise QueueFull(
                f"{self._jobs} requests are running or waiting; at most {self.max_jobs} are allowed; "
                f"try again in {retry_after_s} s",
                retry_after_s,
            )

    def _take_new_jobs(self) -> list[Job]:
        with self._changed:
            jobs, self._new_jobs = self._new_jobs, []
            return jobs

    def _serve(self) -> None:
        while self._wait():
            if self._jobs:
                self.step()
            else:
                self._probe()
        error = ShutdownError("the server shut down before the answer was complete; try another server")
        self._stepper.close(self._take_new_jobs(), error)
        self._publish()

    def _wait(self) -> bool:
        """Wait for a job, or for a reason to try the engine; return False at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._jobs or self._is_trial_due or self._end_s < math.inf,
                _PROBE_S if self._is_faulty else None,
            )
            return self._clock_s() < self._end_s and (bool(self._jobs) or self._end_s == math.inf)

    def _probe(self) -> None:
        """Feed the engine one token: a server that is not ready may get no request to prove it works."""
        try:
            self._stepper.probe()
            self._is_faulty = False
        except Exception as exc:  # noqa: BLE001 - whatever it was, the engine does not work
            _log.warning("the engine %s: %s", "still fails" if self._is_faulty else "fails", exc)
            self._is_faulty = True
        self._note_trial()
        self._publish()

    def _note_trial(self) -> None:
        with self._changed:
            self._trials += 1
            self._is_trial_due = False
            self._changed.notify_all()

    def _recover(self, fault: Exception) -> None:
        running = self._stepper.running
        _log.error("a step failed; %d requests end with an error", running, exc_info=fault)
        self._is_faulty = True
        self._stepper.fail(as_own_error(fault))
        with self._changed:
            self._counts["faults"] += 1

    def _count(self, job: Job) -> None:
        """Add a job that is over to the totals; its place in the queue is free."""
        stats = job.stats
        with self._changed:
            self._jobs -= 1
            self._counts[job.outcome] += 1
            self._counts["prompt_tokens"] += stats.prompt_tokens if job.was_run else 0
            self._counts["reused_tokens"] += stats.reused_tokens
            self._counts["generated_tokens"] += stats.generated_tokens
            elapsed_s = self._clock_s() - job.start_s
            self._answer_s += (elapsed_s - self._answer_s) * (_NEWEST_WEIGHT if self._answer_s else 1)
            self._publish()

    def _publish(self) -> None:
        """Show other threads what the stepper holds now."""
        stepper = self._stepper
        with self._changed:
            self._counts["preempted"] = stepper.preempted
            self._counts["computed_tokens"] = stepper.computed_tokens
            self._load = replace(
                self._load,
                running=stepper.running,
                reading=stepper.reading,
                idle_sequences=stepper.idle_sequences,
                held_tokens=stepper.held_tokens,
                rows=self._engine.row_use,
                is_faulty=self._is_faulty,
            )


def _check_vocabulary(ids: Sequence[int], size: int) -> None:
    wrong = next((token_id for token_id in ids if not 0 <= token_id < size), None)
    if wrong is not None:
        raise RequestError(f"token id {wrong} is not in the vocabulary; 0 to {size - 1} are allowed")
