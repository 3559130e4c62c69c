"""Hashes of the blocks of tokens that ids begin with, each chained to those before it.

Two lists of ids with the same hash of a block begin with the same tokens up to its end, but for a collision:
who relies on it compares the ids once. Not here: finding the list that shares most
(``server.scheduling.prefix_index``).
Source: automatic prefix caching in vLLM, whose blocks have 16 tokens as well.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

__all__ = ["BLOCK_TOKENS", "BlockHashes"]

BLOCK_TOKENS = 16


class BlockHashes:
    """The hash of each complete block of ids that grow or are cut; every id is hashed once."""

    def __init__(self) -> None:
        self._values: list[int] = []

    def update(self, ids: Items[int]) -> list[int]:
        """Hash the blocks that are new since the last call; return the hashes of all, not to be changed."""
        values = self._values
        for start in range(len(values) * BLOCK_TOKENS, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
            block = tuple(ids[start : start + BLOCK_TOKENS])
            values.append(hash((values[-1] if values else 0, block)))
        return values

    def truncate(self, length: int) -> None:
        """Forget the blocks that do not end within the first ``length`` ids."""
        del self._values[length // BLOCK_TOKENS :]
