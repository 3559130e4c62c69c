"""How much memory the sequences of an engine take: each has its own, or all share the rows of one history.

Not here: which sequences are opened, kept and evicted (``prefix_pool``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence

__all__ = ["Growth", "OwnMemory", "SequenceMemory", "SharedRows"]

# Memory is reserved in blocks, so that few tokens need more; the cpu engine's block of keys is as large.
_BLOCK_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Growth:
    """A sequence that is to hold ``length`` tokens, of which ``source`` holds the first ``kept`` already.

    ``sequence`` is None for one to be opened, ``source`` None where nothing is held yet.
    """

    sequence: TrackedSequence | None
    source: TrackedSequence | None
    kept: int
    length: int


class SequenceMemory(ABC):
    """Counts tokens that have memory, with those that are reserved and not fed yet."""

    def __init__(self) -> None:
        self._reserved: dict[TrackedSequence, int] = {}

    @abstractmethod
    def reserve(self, sequence: TrackedSequence, length: int) -> None:
        """Reserve memory for ``length`` tokens of a sequence, whether there is enough or not."""

    @abstractmethod
    def settle(self, sequence: TrackedSequence) -> None:
        """Give back what was reserved for tokens that will not be fed."""

    def forget(self, sequence: TrackedSequence) -> None:
        """Know no more of a sequence that is closed."""
        self._reserved.pop(sequence, None)

    def least(self, sequence: TrackedSequence) -> int:  # noqa: ARG002 - for memory that is never given back
        """Return what a sequence takes even once it is truncated to nothing."""
        return 0

    @abstractmethod
    def held(self) -> int:
        """Return the tokens of all sequences that have memory or have it reserved."""

    @abstractmethod
    def needed(self, sequences: Iterable[TrackedSequence], growths: Iterable[Growth]) -> int:
        """Return what these sequences would take once all ``growths`` are reserved."""


class OwnMemory(SequenceMemory):
    """Each sequence counts as the most tokens it ever reserved, in whole blocks: truncating frees none."""

    def __init__(self, max_context: int) -> None:
        super().__init__()
        self._max_context = max_context

    def reserve(self, sequence: TrackedSequence, length: int) -> None:
        """Count as many whole blocks as it ever needed."""
        self._reserved[sequence] = max(self._reserved.get(sequence, 0), self._blocks(length))

    def settle(self, sequence: TrackedSequence) -> None:
        """Keep all: a block is given back with its sequence alone."""

    def least(self, sequence: TrackedSequence) -> int:
        """Return the tokens of all its blocks."""
        return self._reserved.get(sequence, 0)

    def held(self) -> int:
        """Return the tokens of all blocks."""
        return sum(self._reserved.values())

    def needed(self, sequences: Iterable[TrackedSequence], growths: Iterable[Growth]) -> int:
        """Return the tokens of their blocks."""
        sizes: dict[TrackedSequence | None, int] = {
            sequence: self._reserved.get(sequence, 0) for sequence in sequences
        }
        for growth in growths:
            size = 0 if growth.sequence is None else self._reserved.get(growth.sequence, 0)
            sizes[growth.sequence] = max(size, self._blocks(growth.length))
        return sum(sizes.values())

    def _blocks(self, length: int) -> int:
        """Return the tokens of the blocks that hold ``length``; the last block ends with the context."""
        return min(-(-length // _BLOCK_TOKENS) * _BLOCK_TOKENS, self._max_context)


class SharedRows(SequenceMemory):
    """Each row counts once, whoever holds it, and each token that is reserved and not fed counts as a row.

    All sequences of the engine must be known here.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__()
        self._engine = engine

    def reserve(self, sequence: TrackedSequence, length: int) -> None:
        """Count the tokens up to ``length`` that are not fed yet."""
        self._reserved[sequence] = length

    def settle(self, sequence: TrackedSequence) -> None:
        """Count what it holds alone."""
        self._reserved[sequence] = 0

    def held(self) -> int:
        """Return the rows in use and those to come."""
        use = self._engine.row_use
        assert use is not None  # noqa: S101 - only engines with rows are counted so
        return use.used + sum(map(self._unfed, self._reserved))

    def needed(self, sequences: Iterable[TrackedSequence], growths: Iterable[Growth]) -> int:
        """Return their rows, each once, and those to come."""
        growths = list(growths)
        growing = {growth.sequence for growth in growths}
        steady = [sequence for sequence in sequences if sequence not in growing]
        prefixes = [sequence.prefix(sequence.length) for sequence in steady]
        prefixes += [growth.source.prefix(growth.kept) for growth in growths if growth.source is not None]
        to_come = sum(map(self._unfed, steady)) + sum(
            max(0, growth.length - growth.kept) for growth in growths
        )
        return self._engine.count_rows(prefixes) + to_come

    def _unfed(self, sequence: TrackedSequence) -> int:
        return max(0, self._reserved.get(sequence, 0) - sequence.length)
