"""Who asks for a grammar to be compiled, and whether anybody still waits for it.

Not here: who that is in a server (``server.callers``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from threading import Lock

__all__ = ["Caller"]


class Caller:
    """One request, which may leave at any time, from any thread.

    Grammars are kept for callers of the same ``tenant`` only: how soon one is compiled tells whether it was
    asked for before. Of callers that wait, each ``client`` has its turn.
    Units: ``left_s`` is the processor time that all trials of the request may still take.
    """

    def __init__(self, tenant: str = "", client: str = "", processor_s: float = math.inf) -> None:
        self.tenant = tenant
        self.client = client
        self.left_s = processor_s
        self._has_left = False
        self._lock = Lock()  # guards what follows
        self._reactions: list[Callable[[], object]] = []

    @property
    def has_left(self) -> bool:
        """Whether nobody waits for the answer."""
        return self._has_left

    def leave(self) -> None:
        """Stop what is done for the caller."""
        with self._lock:
            self._has_left = True
            reactions = list(self._reactions)
        for react in reactions:
            react()

    @contextmanager
    def on_leave(self, react: Callable[[], object]) -> Generator[None, None, None]:
        """Call a function when the caller leaves inside of the ``with``; at once when it has left."""
        with self._lock:
            self._reactions.append(react)
        try:
            if self._has_left:
                react()
            yield
        finally:
            with self._lock:
                self._reactions.remove(react)
