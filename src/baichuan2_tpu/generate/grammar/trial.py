"""Compiling a stranger's grammar in another process first, with limits of processor time and memory.

Only what was compiled there within the limits is compiled in this process, with the same library and the
same tokens, and so at the same price. A grammar first gets a short time, in which usual ones are compiled
many times over; one that takes longer waits again, behind others that do, so that costly grammars do not
keep usual ones.
Not here: what the grammar is (``grammars``), bounds that need no trial (``schema_bounds``), the processes
(``trial_process``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from typing_extensions import Self

from baichuan2_tpu.errors import CallerLeft, RequestError, TooCostly
from baichuan2_tpu.generate.caller import Caller
from baichuan2_tpu.generate.grammar.trial_process import TrialProcess, TrialResult
from baichuan2_tpu.generate.grammar.trial_queue import TrialQueue

__all__ = ["GrammarTrial", "TrialLimits"]


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What one grammar may take, and how many may wait for their trial."""

    quick_s: float = 0.1
    """Seconds of one core that every grammar has; usual ones take some milliseconds."""
    processor_s: float = 2
    """Seconds that a costly one has behind others."""
    memory_bytes: int = 256 << 20
    waiting: int = 32
    costly_waiting: int = 3


class GrammarTrial:
    """Tries grammars for one vocabulary, a usual and a costly one at a time, from any thread.

    ``tokens`` is the text of every token, ``special_ids`` those without one, ``eos_id`` the end.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_ids: Sequence[int],
        eos_id: int,
        limits: TrialLimits | None = None,
    ) -> None:
        self._limits = limits = limits or TrialLimits()
        self._process = TrialProcess(tokens, special_ids, eos_id, limits.memory_bytes)
        usual = TrialQueue(limits.waiting, limits.quick_s, "new schemas")
        costly = TrialQueue(limits.costly_waiting, limits.processor_s, "costly schemas")
        self._queues = ((usual, limits.quick_s), (costly, limits.processor_s))

    def check(self, grammar: str, cause: str = "", caller: Caller | None = None) -> int:
        """Compile a grammar and return the bytes it takes; ``cause`` says what in it is likely to be costly.

        Raises: RequestError where it cannot be compiled, TooCostly where not within the limits; QueueFull
        where as many wait as may; CallerLeft; ShutdownError once it is closed.
        """
        caller = caller or Caller()
        result = TrialResult()
        for queue, processor_s in self._queues:
            if caller.left_s <= 0:
                raise TooCostly("the grammars of the request take too long to compile; ask for fewer")
            with queue.turn(caller):
                result = self._process.run(grammar, min(processor_s, caller.left_s), caller)
            if caller.has_left:
                raise CallerLeft("the client left before its schema was compiled")
            caller.left_s -= result.processor_s
            if not result.is_too_slow:
                break
        self._check_result(result, cause)
        return result.grown_bytes

    def prove(self, grammar: str) -> None:
        """Try a grammar that can be compiled. Raises: RequestError when it is not."""
        self._check_result(self._process.run(grammar, self._limits.processor_s, Caller()), "")

    def close(self) -> None:
        """End what runs and refuse what waits; closing twice is allowed."""
        for queue, _ in self._queues:
            queue.close()
        self._process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_result(self, result: TrialResult, cause: str) -> None:
        if result.is_too_slow or result.is_too_large:
            named = f"; the likely cause is {cause}" if cause else ""
            allowed = (
                f"{self._limits.processor_s:g} s of processor time"
                if result.is_too_slow
                else f"{self._limits.memory_bytes >> 20} MB of memory"
            )
            raise TooCostly(f"the grammar takes more than {allowed} to compile{named}; make it simpler")
        if result.error:
            raise RequestError(result.error)
