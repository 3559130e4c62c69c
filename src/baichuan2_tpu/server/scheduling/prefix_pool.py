"""The open sequences of an engine, kept after use so that a prompt can reuse the prefix it shares with one.

Not here: which request runs when (``step``).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.server.scheduling.prefix_index import PrefixIndex, Prompt

__all__ = ["PrefixPool"]

# Memory is reserved in blocks, so that few tokens need more; the cpu engine's block of keys is as large.
_BLOCK_TOKENS = 64


class PrefixPool:
    """Sequences in use, and idle ones in the order of their last use.

    Where each sequence has memory of its own, it counts as the most tokens it ever reserved, in whole blocks:
    truncating frees none. Where all share rows, it counts as what it holds and has reserved.
    What a sequence holds serves prompts of its tenant alone; its memory serves everybody.
    Units: ``max_tokens`` bounds the tokens of all sequences together; a full context must fit.
    """

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._has_rows = engine.row_use is not None
        self._idle: list[TrackedSequence] = []
        self._sizes: dict[TrackedSequence, int] = {}
        self._tenants: dict[TrackedSequence, str] = {}
        self._index: PrefixIndex[TrackedSequence] = PrefixIndex()
        self._copied_tokens = 0

    @property
    def held_tokens(self) -> int:
        """Tokens that have memory, in sequences in use and idle ones."""
        return sum(self._sizes.values())

    @property
    def idle_sequences(self) -> int:
        """Sequences kept for prompts that share their beginning."""
        return len(self._idle)

    @property
    def copied_tokens(self) -> int:
        """Tokens copied between sequences since the start; none where copies share their memory."""
        return self._copied_tokens

    def refresh(self) -> None:
        """Learn what was fed to the sequences since the last call; call it before prompts are compared."""
        for sequence in self._sizes:
            self._index.update(sequence, sequence.block_hashes)

    def shared_blocks(self, prompt: Prompt) -> int:
        """Return how many blocks of a prompt some sequence, in use or idle, holds."""
        return self._index.nearest(prompt.block_hashes, self._of_tenant(prompt, self._sizes))[1]

    def take(self, prompt: Prompt) -> TrackedSequence | None:
        """Return a sequence that holds a prefix of a prompt and has memory for all; None when none is free.

        The sequence with the longest shared prefix is taken; of equal ones, the least recently used. One that
        would lose more than half of what it holds is left alone while another can be opened. The new one then
        gets a copy of the longest prefix, of a sequence in use or idle, where the engine can copy.
        """
        free_tokens = self._max_tokens - self.held_tokens + self._idle_tokens
        ids = prompt.ids
        size = self._size(len(ids))
        if size > free_tokens or len(self._sizes) - len(self._idle) == self._engine.max_sequences:
            return None
        fitting = [sequence for sequence in self._idle if self._sizes[sequence] <= free_tokens]
        best = self._longest(prompt, fitting)
        if best is None or not self._is_worth(best, best.common_prefix(ids), size):
            best = self._open(prompt)
        else:
            self._idle.remove(best)
        self.reserve(best, len(ids))
        best.keep_prefix(ids)
        self._index.update(best, best.block_hashes)
        return best

    def reserve(self, sequence: TrackedSequence, length: int) -> bool:
        """Reserve memory for ``length`` tokens of a sequence in use; False when others in use have it all.

        Side effect: the least recently used idle sequences are evicted as far as needed.
        """
        more = self._size(length) - self._sizes[sequence]
        if not self._has_rows:
            more = max(0, more)
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
        del self._sizes[sequence], self._tenants[sequence]
        self._index.discard(sequence)
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
        if self._has_rows:
            return length
        return min(-(-length // _BLOCK_TOKENS) * _BLOCK_TOKENS, self._engine.max_context)

    def _of_tenant(self, prompt: Prompt, sequences: Iterable[TrackedSequence]) -> list[TrackedSequence]:
        return [sequence for sequence in sequences if self._tenants[sequence] == prompt.tenant]

    def _longest(self, prompt: Prompt, among: Iterable[TrackedSequence]) -> TrackedSequence | None:
        """Return the sequence of its tenant that shares the most with a prompt, the first of equal ones."""
        nearest, blocks = self._index.nearest(prompt.block_hashes, self._of_tenant(prompt, among))
        return max(nearest, key=lambda sequence: sequence.common_block(prompt.ids, blocks), default=None)

    def _is_worth(self, sequence: TrackedSequence, kept: int, size: int) -> bool:
        """Tell whether to reuse a sequence, which then keeps only ``kept`` tokens."""
        is_full = len(self._sizes) == self._engine.max_sequences or self.held_tokens + size > self._max_tokens
        return kept > 0 and (is_full or 2 * kept >= sequence.length)

    def _open(self, prompt: Prompt) -> TrackedSequence:
        """Open a sequence with a copied prefix; the least recently used one is evicted where all are open."""
        if len(self._sizes) == self._engine.max_sequences:
            self.discard(self._idle.pop(0))
        source = self._longest(prompt, self._sizes)
        with ExitStack() as stack:  # closes the sequence if it cannot be filled
            sequence = stack.enter_context(TrackedSequence(self._engine))
            if source is not None and self._engine.can_copy:
                sequence.copy_prefix(source, prompt.ids)
            stack.pop_all()
        self._copied_tokens += 0 if self._engine.copies_share else sequence.length
        self._sizes[sequence] = 0
        self._tenants[sequence] = prompt.tenant
        return sequence
