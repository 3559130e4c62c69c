"""The callers that wait for their turn, of whom one at a time is let through.

Not here: what is done with a turn (``trial``).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from threading import Condition

from baichuan2_tpu.errors import CallerLeft, QueueFull, ShutdownError
from baichuan2_tpu.generate.caller import Caller

__all__ = ["TrialQueue"]


class TrialQueue:
    """Gives the turn to the client that had it longest ago; of one client's callers, to the first.

    ``most_waiting`` may wait besides the one whose turn it is, who takes ``turn_s`` at most.
    """

    def __init__(self, most_waiting: int, turn_s: float, name: str) -> None:
        self._most_waiting = most_waiting
        self._turn_s = turn_s
        self._name = name
        self._numbers = count(1)
        self._changed = Condition()  # guards what follows
        self._waiting: list[Caller] = []
        self._is_taken = False
        self._is_closed = False
        self._turns: dict[str, int] = {}  # when each client that waits last had its turn

    @contextmanager
    def turn(self, caller: Caller) -> Generator[None, None, None]:
        """Wait for the turn, and have it inside of the ``with``.

        Raises: QueueFull where as many wait as may; CallerLeft; ShutdownError once it is closed.
        """
        self._wait(caller)
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()

    def close(self) -> None:
        """Let nobody through any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _wait(self, caller: Caller) -> None:
        with self._changed:
            if len(self._waiting) >= self._most_waiting + (not self._is_taken):
                raise self._full()
            self._waiting.append(caller)
        with caller.on_leave(self._look_again), self._changed:
            try:
                self._changed.wait_for(lambda: caller.has_left or self._is_closed or self._is_turn(caller))
                if self._is_closed:
                    raise ShutdownError("the server stops and compiles no more schemas; try another one")
                if caller.has_left:
                    raise CallerLeft("the client left before its schema was compiled")
                self._is_taken = True
                self._turns[caller.client] = next(self._numbers)
            finally:
                self._waiting.remove(caller)
                clients = {other.client for other in self._waiting} | {caller.client}
                self._turns = {client: turn for client, turn in self._turns.items() if client in clients}
                self._changed.notify_all()

    def _is_turn(self, caller: Caller) -> bool:
        if self._is_taken:
            return False
        return caller is min(self._waiting, key=lambda waiting: self._turns.get(waiting.client, 0))

    def _look_again(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _full(self) -> QueueFull:
        retry_after_s = max(1, round(self._turn_s * len(self._waiting) / 2))
        return QueueFull(
            f"{len(self._waiting)} {self._name} wait to be compiled already; try again in {retry_after_s} s",
            retry_after_s,
        )
