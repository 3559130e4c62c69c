"""The open sequences of an engine, kept after use so that a prompt can go on from what it begins with.

Not here: which request runs when (``scheduler``).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from contextlib import ExitStack

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence

__all__ = ["PrefixPool"]

# Memory is given in blocks, so that one more token seldom needs more; it is the cpu engine's block of keys.
_BLOCK_TOKENS = 64


class PrefixPool:
    """Sequences in use, and idle ones in the order of their last use.

    A sequence counts with the most tokens it ever had memory for: truncating gives none back.
    Units: ``max_tokens`` bounds the tokens of all sequences together; a full context must fit.
    """

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._idle: list[TrackedSequence] = []
        self._sizes: dict[TrackedSequence, int] = {}

    @property
    def held_tokens(self) -> int:
        """Tokens that memory is taken for, by sequences in use and idle ones."""
        return sum(self._sizes.values())

    @property
    def idle_sequences(self) -> int:
        """Sequences that wait for a prompt to go on from them."""
        return len(self._idle)

    def take(self, ids: Items[int]) -> TrackedSequence | None:
        """Return a sequence that holds a beginning of ``ids`` and has memory for all; None when none is free.

        The longest beginning is taken; of equal ones, the least recently used. A sequence that would lose
        more than half of what it holds is left alone while there is place for another, which then gets a
        copy of the longest beginning, be it in use or not, where the engine can copy.
        """
        free_tokens = self._max_tokens - self.held_tokens + self._idle_tokens
        size = self._size(len(ids))
        if size > free_tokens or len(self._sizes) - len(self._idle) == self._engine.max_sequences:
            return None
        fitting = [one for one in self._idle if self._sizes[one] <= free_tokens]
        best = max(fitting, key=lambda one: one.common_prefix(ids), default=None)
        if best is None or not self._is_worth(best, best.common_prefix(ids), size):
            best = self._open(ids)
        else:
            self._idle.remove(best)
        self.reserve(best, len(ids))
        best.keep_prefix(ids)
        return best

    def reserve(self, sequence: TrackedSequence, length: int) -> bool:
        """Take memory for ``length`` tokens of a sequence in use; False when others in use have it all.

        Side effect: the least recently used idle sequences are closed as far as needed.
        """
        more = max(0, self._size(length) - self._sizes[sequence])
        if self.held_tokens - self._idle_tokens + more > self._max_tokens:
            return False
        self._sizes[sequence] += more
        while self.held_tokens > self._max_tokens:
            self.discard(self._idle.pop(0))
        return True

    def give_back(self, sequence: TrackedSequence) -> None:
        """Keep a sequence that is no longer in use."""
        self._idle.append(sequence)

    def discard(self, sequence: TrackedSequence) -> None:
        """Close a sequence in use, whose tokens are of no more use."""
        del self._sizes[sequence]
        sequence.close()

    def clear(self) -> None:
        """Close every idle sequence."""
        while self._idle:
            self.discard(self._idle.pop())

    @property
    def _idle_tokens(self) -> int:
        return sum(self._sizes[one] for one in self._idle)

    def _size(self, length: int) -> int:
        """Return the tokens of whole blocks; the last block ends with the context."""
        return min(-(-length // _BLOCK_TOKENS) * _BLOCK_TOKENS, self._engine.max_context)

    def _is_worth(self, sequence: TrackedSequence, kept: int, size: int) -> bool:
        """Tell whether to go on from a sequence, which then holds ``kept`` tokens only."""
        is_full = len(self._sizes) == self._engine.max_sequences or self.held_tokens + size > self._max_tokens
        return kept > 0 and (is_full or 2 * kept >= sequence.length)

    def _open(self, ids: Items[int]) -> TrackedSequence:
        """Open a sequence, in place of the least recently used one if need be, with a copied beginning."""
        if len(self._sizes) == self._engine.max_sequences:
            self.discard(self._idle.pop(0))
        source = max(self._sizes, key=lambda one: one.common_prefix(ids), default=None)
        with ExitStack() as opened:  # closed if it cannot be filled
            sequence = opened.enter_context(TrackedSequence(self._engine))
            if source is not None and self._engine.can_copy:
                sequence.copy_prefix(source, ids)
            opened.pop_all()
        self._sizes[sequence] = 0
        return sequence
