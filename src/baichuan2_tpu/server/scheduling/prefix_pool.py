"""The open sequences of an engine, kept after use so that a prompt can reuse the prefix it shares with one.

Not here: which request runs when (``step``).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from contextlib import ExitStack

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence

__all__ = ["PrefixPool"]

# Memory is reserved in blocks, so that few tokens need more; the cpu engine's block of keys is as large.
_BLOCK_TOKENS = 64


class PrefixPool:
    """Sequences in use, and idle ones in the order of their last use.

    A sequence counts as the most tokens it ever reserved: truncating frees no memory.
    Units: ``max_tokens`` bounds the tokens of all sequences together; a full context must fit.
    """

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._idle: list[TrackedSequence] = []
        self._sizes: dict[TrackedSequence, int] = {}

    @property
    def held_tokens(self) -> int:
        """Tokens that have memory, in sequences in use and idle ones."""
        return sum(self._sizes.values())

    @property
    def idle_sequences(self) -> int:
        """Sequences kept for prompts that share their beginning."""
        return len(self._idle)

    def take(self, ids: Items[int]) -> TrackedSequence | None:
        """Return a sequence that holds a prefix of ``ids`` and has memory for all; None when none is free.

        The sequence with the longest shared prefix is taken; of equal ones, the least recently used. One that
        would lose more than half of what it holds is left alone while another can be opened. The new one then
        gets a copy of the longest prefix, of a sequence in use or idle, where the engine can copy.
        """
        free_tokens = self._max_tokens - self.held_tokens + self._idle_tokens
        size = self._size(len(ids))
        if size > free_tokens or len(self._sizes) - len(self._idle) == self._engine.max_sequences:
            return None
        fitting = [sequence for sequence in self._idle if self._sizes[sequence] <= free_tokens]
        best = max(fitting, key=lambda sequence: sequence.common_prefix(ids), default=None)
        if best is None or not self._is_worth(best, best.common_prefix(ids), size):
            best = self._open(ids)
        else:
            self._idle.remove(best)
        self.reserve(best, len(ids))
        best.keep_prefix(ids)
        return best

    def reserve(self, sequence: TrackedSequence, length: int) -> bool:
        """Reserve memory for ``length`` tokens of a sequence in use; False when others in use have it all.

        Side effect: the least recently used idle sequences are evicted as far as needed.
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
        """Close a sequence in use whose tokens are no longer needed."""
        del self._sizes[sequence]
        sequence.close()

    def clear(self) -> None:
        """Close every idle sequence."""
        while self._idle:
            self.discard(self._idle.pop())

    @property
    def _idle_tokens(self) -> int:
        return sum(self._sizes[sequence] for sequence in self._idle)

    def _size(self, length: int) -> int:
        """Return the tokens of the blocks that hold ``length``; the last block ends with the context."""
        return min(-(-length // _BLOCK_TOKENS) * _BLOCK_TOKENS, self._engine.max_context)

    def _is_worth(self, sequence: TrackedSequence, kept: int, size: int) -> bool:
        """Tell whether to reuse a sequence, which then keeps only ``kept`` tokens."""
        is_full = len(self._sizes) == self._engine.max_sequences or self.held_tokens + size > self._max_tokens
        return kept > 0 and (is_full or 2 * kept >= sequence.length)

    def _open(self, ids: Items[int]) -> TrackedSequence:
        """Open a sequence with a copied prefix; the least recently used one is evicted where all are open."""
        if len(self._sizes) == self._engine.max_sequences:
            self.discard(self._idle.pop(0))
        source = max(self._sizes, key=lambda sequence: sequence.common_prefix(ids), default=None)
        with ExitStack() as stack:  # closes the sequence if it cannot be filled
            sequence = stack.enter_context(TrackedSequence(self._engine))
            if source is not None and self._engine.can_copy:
                sequence.copy_prefix(source, ids)
            stack.pop_all()
        self._sizes[sequence] = 0
        return sequence
