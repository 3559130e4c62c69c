"""Whether every part of a server works, proved by using it: text to tokens, a schema, a token of the engine.

The proof runs in one thread, which may hang with the part that hangs; nobody waits for it without a bound.
Not here: what the parts are (``service``), the route that supervisors ask (``transport.routes_operations``).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from threading import Event, Lock, Thread

__all__ = ["Readiness"]

_log = logging.getLogger(__name__)

_FRESH_S = 10
"""How long a proof holds: supervisors ask every few seconds, and a token takes a 7B half a second."""
_BOUND_S = 30
"""Time for one proof, on a machine that is busy with answers."""


class Readiness:
    """The latest proof of some parts, from any thread; ``parts`` raise where they do not work."""

    def __init__(
        self, parts: Mapping[str, Callable[[], object]], *, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._parts = parts
        self._clock_s = clock_s
        self._lock = Lock()  # guards what follows
        self._start_s: float | None = None  # of the latest proof
        self._part = ""  # that is tried
        self._failed_part: str | None = None
        self._done = Event()
        self._done.set()

    def begin(self) -> Event:
        """Begin a proof unless one runs or is fresh; return what is set when it is over."""
        with self._lock:
            now_s = self._clock_s()
            if self._done.is_set() and (self._start_s is None or now_s - self._start_s >= _FRESH_S):
                self._start_s = now_s
                self._done = Event()
                Thread(target=self._prove, args=(self._done,), name="readiness", daemon=True).start()
            return self._done

    @property
    def broken_part(self) -> str | None:
        """The part that failed in the latest proof, or hangs in the one that runs; None when all is well."""
        with self._lock:
            start_s = self._start_s or 0
            hangs = not self._done.is_set() and self._clock_s() - start_s >= _BOUND_S
            return self._part if hangs else self._failed_part

    def _prove(self, done: Event) -> None:
        failed_part = None
        for name, use in self._parts.items():
            with self._lock:
                self._part = name
            try:
                use()
            except Exception as error:  # noqa: BLE001 - whatever it was, the part does not work
                _log.warning("the %s does not work: %s", name, error)
                failed_part = name
        with self._lock:
            self._failed_part = failed_part
        done.set()
