"""The end of a server's process in a given time from the signal on, whatever hangs in it.

Not here: signals and connections (``listening``), how running answers end (``scheduling.scheduler``).
"""

from __future__ import annotations

import logging
import os
import threading
import time
from threading import Event, Thread
from types import TracebackType

from typing_extensions import Self

from baichuan2_tpu.server.log_lines import log_event

__all__ = ["Ending"]

_log = logging.getLogger(__name__)

_LEAST_S = 1.0
"""Even without a grace period answers end with an error that their clients can read."""
_READING_SHARE = 0.25
"""Share of the time that is kept for clients to read the end of their answers, and for closing."""
_LEAST_READING_S = 0.5
_MOST_READING_S = 5.0


class Ending:
    """The times of an end within ``grace_s``, or a second where that is longer, from ``begin`` on.

    Leaving a ``with`` waits for the threads that were started in it. What still hangs at ``force_s`` ends
    with the process, whose exit code is 0 as without it.
    Units: ``answers_s``, ``connections_s`` and ``force_s`` are seconds after ``begin``.
    """

    def __init__(self, grace_s: float) -> None:
        total_s = max(grace_s, _LEAST_S)
        reading_s = min(max(total_s * _READING_SHARE, _LEAST_READING_S), _MOST_READING_S)
        self.answers_s = total_s - reading_s
        """When answers that still run end with an error."""
        self.connections_s = total_s - 0.5 * reading_s
        """When connections that are still open are closed."""
        self.force_s = total_s - 0.3 * reading_s
        """When the process is ended; half of what is left is for its log line."""
        self._log_s = 0.15 * reading_s
        self._start_s: float | None = None
        self._is_over = Event()
        self._threads_before: set[Thread] = set()
        self._thread = Thread(target=self._end_process, name="end", daemon=True)

    @property
    def is_begun(self) -> bool:
        """Whether the time runs."""
        return self._start_s is not None

    def begin(self) -> None:
        """Let the time run. Side effect: starts a thread."""
        self._start_s = time.monotonic()
        self._thread.start()

    def left_s(self, moment_s: float) -> float:
        """Return the seconds until a moment of the end; 0 when it has passed."""
        assert self._start_s is not None  # noqa: S101 - our own invariant
        return max(0.0, self._start_s + moment_s - time.monotonic())

    def __enter__(self) -> Self:
        self._threads_before = set(threading.enumerate())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_begun:
            for thread in set(threading.enumerate()) - self._threads_before:
                if not thread.daemon:  # the interpreter would wait for it, and without a bound
                    thread.join()
        self._is_over.set()
        if self.is_begun:  # what a thread holds is never freed once the interpreter ends around it
            self._thread.join()

    def _end_process(self) -> None:
        if self._is_over.wait(self.force_s):
            return
        fields = {"after_s": round(self.force_s, 1)}
        # In a thread of its own: what hangs may hold the lock of the log.
        writing = Thread(
            target=log_event,
            args=(_log, "ended although something still runs"),
            kwargs={"level": logging.WARNING, **fields},
            daemon=True,
        )
        writing.start()
        writing.join(self._log_s)
        os._exit(0)
