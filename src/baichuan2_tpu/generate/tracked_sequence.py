"""A sequence of an engine together with the ids it holds, so that a new prompt can continue an old one.

Not here: choosing which sequence a prompt should continue (``chat``, the server's scheduler).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass
from itertools import compress, count
from operator import ne
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from baichuan2_tpu.engine.base import Chunk, Engine, Sequence
from baichuan2_tpu.generate.block_hashes import BLOCK_TOKENS, BlockHashes

__all__ = ["Feed", "TrackedSequence", "common_prefix", "feed_together"]


@dataclass(frozen=True, slots=True)
class Feed:
    """Ids to append to a sequence, and of how many of the last ones logits are wanted."""

    sequence: TrackedSequence
    ids: Items[int]
    logit_rows: int = 1


def common_prefix(first: Items[int], second: Items[int]) -> int:
    """Return how many ids both begin with."""
    # Without a step of the interpreter per id: a beginning may have tens of thousands.
    return next(compress(count(), map(ne, first, second)), min(len(first), len(second)))


def feed_together(feeds: Items[Feed]) -> list[NDArray[np.float32]]:
    """Append ids to several sequences of one engine in one call.

    Shapes: for each feed (logit_rows, V). Raises: what ``Engine.forward`` raises, and then nothing was
    appended to any.
    """
    chunks = [feed.sequence.chunk(feed.ids, feed.logit_rows) for feed in feeds]
    rows = feeds[0].sequence.engine.forward(chunks)
    for feed in feeds:
        feed.sequence.extend(feed.ids)
    return rows


class TrackedSequence:
    """One sequence and its ids; open until ``close``, or to the end of a ``with``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sequence = engine.open_sequence()
        self._ids: list[int] = []
        self._hashes = BlockHashes()

    @property
    def length(self) -> int:
        """Number of ids that are held."""
        return len(self._ids)

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids whose keys and values the engine holds."""
        return tuple(self._ids)

    @property
    def block_hashes(self) -> list[int]:
        """The hashes of the complete blocks of the ids; see ``generate.block_hashes``."""
        return self._hashes.update(self._ids)

    def prefix(self, length: int) -> tuple[Sequence, int]:
        """Return the first ids as ``Engine.count_rows`` takes them."""
        return self._sequence, length

    def keep_prefix(self, prompt_ids: Items[int]) -> int:
        """Forget what is not the beginning of the prompt, and return how many ids stay.

        The prompt's last id never stays: it must be fed to get logits.
        """
        self.truncate(self.common_prefix(prompt_ids))
        return len(self._ids)

    def copy_prefix(self, source: TrackedSequence, length: int) -> None:
        """Hold the first ids of another sequence, where the engine can copy."""
        self._sequence.copy_prefix(source._sequence, length)
        self._ids[:] = source._ids[:length]
        self._hashes.truncate(0)

    def common_prefix(self, prompt_ids: Items[int]) -> int:
        """Return how many ids ``keep_prefix`` would keep."""
        return common_prefix(self._ids, prompt_ids[:-1])

    def common_block(self, prompt_ids: Items[int], block: int) -> int:
        """Return how many ids of one block are the prompt's."""
        ids = slice(block * BLOCK_TOKENS, (block + 1) * BLOCK_TOKENS)
        return common_prefix(self._ids[ids], prompt_ids[ids])

    def truncate(self, length: int) -> None:
        """Forget every id from ``length`` on."""
        # The engine holds more than is known here when a call to it was interrupted on its way back.
        self._sequence.truncate(length)
        del self._ids[length:]
        self._hashes.truncate(length)

    def feed(self, ids: Items[int], logit_rows: int = 1) -> NDArray[np.float32]:
        """Append ids and return the logits of the last ones.

        Shapes: (logit_rows, V). Raises: what ``Engine.forward`` raises, and then nothing was appended.
        """
        return feed_together([Feed(self, ids, logit_rows)])[0]

    def chunk(self, ids: Items[int], logit_rows: int) -> Chunk:
        """Return ids to append, for the engine; ``extend`` follows when it has."""
        return Chunk(self._sequence, ids, logit_rows)

    def extend(self, ids: Items[int]) -> None:
        """Know of ids that the engine holds now."""
        self._ids += ids

    def close(self) -> None:
        """Give the engine's memory back; closing twice is allowed."""
        self._sequence.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
