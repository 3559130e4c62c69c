"""The open sequences of an engine, kept after use so that a prompt can reuse the prefix it shares with one.

Not here: which request runs when (``step``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.server.scheduling.prefix_index import PrefixIndex, Prompt
from baichuan2_tpu.server.scheduling.sequence_memory import Growth, OwnMemory, SharedRows

__all__ = ["PrefixPool"]


class PrefixPool:
    """Sequences in use, and idle ones in the order of their last use.

    What a sequence holds serves prompts of its tenant alone; its memory serves everybody.
    Units: ``max_tokens`` bounds the tokens of all sequences together; a full context must fit.
    """

    def __init__(self, engine: Engine, max_tokens: int) -> None:
        self._engine = engine
        self._max_tokens = max_tokens
        self._memory = OwnMemory(engine.max_context) if engine.row_use is None else SharedRows(engine)
        self._idle: dict[TrackedSequence, None] = {}
        self._tenants: dict[TrackedSequence, str] = {}  # of every open sequence
        self._index: PrefixIndex[TrackedSequence] = PrefixIndex()
        self._copied_tokens = 0

    @property
    def held_tokens(self) -> int:
        """Tokens that have memory, in sequences in use and idle ones."""
        return self._memory.held()

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
        for sequence in self._tenants:
            self._index.update(sequence, sequence.block_hashes)

    def shared_blocks(self, prompt: Prompt) -> int:
        """Return how many blocks of a prompt some sequence, in use or idle, holds."""
        return self._index.nearest(prompt.block_hashes, self._of_tenant(prompt, self._tenants))[1]

    def take(self, prompt: Prompt) -> TrackedSequence | None:
        """Return a sequence that holds a prefix of a prompt and has memory for all; None when none is free.

        The sequence with the longest shared prefix is taken; of equal ones, the least recently used. One that
        would lose more than half of what it holds is left alone while another can be opened. The new one then
        gets a copy of the longest prefix, of a sequence in use or idle, where the engine can copy.
        """
        in_use = self._in_use()
        if len(in_use) == self._engine.max_sequences:
            return None
        growth = next((growth for growth in self._ways(prompt, in_use) if self._fits(in_use, [growth])), None)
        if growth is None:
            return None
        sequence = growth.sequence or self._open(prompt, growth)
        self._idle.pop(sequence, None)
        sequence.keep_prefix(prompt.ids)
        self._memory.reserve(sequence, growth.length)
        self._evict()
        self._index.update(sequence, sequence.block_hashes)
        return sequence

    def reserve(self, lengths: Mapping[TrackedSequence, int]) -> bool:
        """Reserve memory for the tokens of sequences in use; False when others in use have it all.

        Side effect: the least recently used idle sequences are evicted as far as needed.
        """
        growths = [
            Growth(sequence, sequence, sequence.length, length) for sequence, length in lengths.items()
        ]
        if not self._fits(self._in_use(), growths):
            return False
        for sequence, length in lengths.items():
            self._memory.reserve(sequence, length)
        self._evict()
        return True

    def give_back(self, sequence: TrackedSequence) -> None:
        """Keep a sequence that is no longer in use."""
        self._memory.settle(sequence)
        self._idle[sequence] = None

    def discard(self, sequence: TrackedSequence) -> None:
        """Close a sequence in use whose tokens are no longer needed."""
        del self._tenants[sequence]
        self._memory.forget(sequence)
        self._index.discard(sequence)
        sequence.close()

    def clear(self) -> None:
        """Close every idle sequence."""
        while self._idle:
            self._discard_oldest()

    def _in_use(self) -> list[TrackedSequence]:
        return [sequence for sequence in self._tenants if sequence not in self._idle]

    def _fits(self, sequences: Iterable[TrackedSequence], growths: Iterable[Growth]) -> bool:
        """Tell whether some sequences have memory for their growth, without any other."""
        return self._memory.needed(sequences, growths) <= self._max_tokens

    def _evict(self) -> None:
        """Close idle sequences, the least recently used first, until the others have enough memory."""
        while self._memory.held() > self._max_tokens:
            self._discard_oldest()

    def _discard_oldest(self) -> None:
        oldest = next(iter(self._idle))
        del self._idle[oldest]
        self.discard(oldest)

    def _of_tenant(self, prompt: Prompt, sequences: Iterable[TrackedSequence]) -> list[TrackedSequence]:
        return [sequence for sequence in sequences if self._tenants[sequence] == prompt.tenant]

    def _longest(self, prompt: Prompt, among: Iterable[TrackedSequence]) -> TrackedSequence | None:
        """Return the sequence of its tenant that shares the most with a prompt, the first of equal ones."""
        nearest, blocks = self._index.nearest(prompt.block_hashes, self._of_tenant(prompt, among))
        return max(nearest, key=lambda sequence: sequence.common_block(prompt.ids, blocks), default=None)

    def _ways(self, prompt: Prompt, in_use: list[TrackedSequence]) -> Iterator[Growth]:
        """Yield how a prompt may get its sequence, the best way first."""
        free_tokens = self._max_tokens - self._memory.needed(in_use, [])
        fitting = [sequence for sequence in self._idle if self._memory.least(sequence) <= free_tokens]
        best = self._longest(prompt, fitting)
        kept = best.common_prefix(prompt.ids) if best else 0
        if best and kept and (2 * kept >= best.length or self._is_full(self._copy(prompt))):
            yield Growth(best, best, kept, len(prompt.ids))
        yield self._copy(prompt)

    def _copy(self, prompt: Prompt) -> Growth:
        """Return a new sequence with a copy of the longest prefix, where the engine can copy."""
        source = self._longest(prompt, self._tenants) if self._engine.can_copy else None
        kept = source.common_prefix(prompt.ids) if source else 0
        return Growth(None, source if kept else None, kept, len(prompt.ids))

    def _is_full(self, growth: Growth) -> bool:
        """Tell whether a new sequence could not be opened beside all others."""
        is_open = len(self._tenants) == self._engine.max_sequences
        return is_open or not self._fits(self._tenants, [growth])

    def _open(self, prompt: Prompt, growth: Growth) -> TrackedSequence:
        """Open a sequence with a copied prefix; the least recently used one is evicted where all are open."""
        if len(self._tenants) == self._engine.max_sequences:
            self._discard_oldest()
            growth = self._copy(prompt)  # what it was to be copied from may be gone
        with ExitStack() as stack:  # closes the sequence if it cannot be filled
            sequence = stack.enter_context(TrackedSequence(self._engine))
            if growth.source is not None:
                sequence.copy_prefix(growth.source, growth.kept)
            stack.pop_all()
        self._copied_tokens += 0 if self._engine.copies_share else sequence.length
        self._tenants[sequence] = prompt.tenant
        return sequence
