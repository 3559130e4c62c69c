"""Which of many lists of ids begins most like a prompt, found with a few look-ups however many there are.

Not here: the sequences that hold them (``prefix_pool``), the hashes themselves (``generate.block_hashes``).
Source: the hashed blocks of vLLM's automatic prefix caching.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from typing_extensions import Self

from baichuan2_tpu.generate.block_hashes import BlockHashes

__all__ = ["PrefixIndex", "Prompt"]

_Owner = TypeVar("_Owner", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Prompt:
    """Ids that a sequence is to hold, the hashes of their blocks, and whose they are.

    Only sequences of the same ``tenant`` may serve it: whether a beginning is held already shows in the
    answer's counts and times.
    """

    ids: Sequence[int]
    block_hashes: Sequence[int]
    tenant: str = ""

    @classmethod
    def of(cls, ids: Sequence[int], tenant: str = "") -> Self:
        """Return a prompt, hashed now."""
        return cls(ids, BlockHashes().update(ids), tenant)


class PrefixIndex(Generic[_Owner]):
    """The owners of every block, by its hash.

    A chained hash stands for all blocks before it too, so that who holds a block holds those before it, and
    the longest beginning is found by bisection.
    """

    def __init__(self) -> None:
        self._owners: dict[int, set[_Owner]] = {}
        self._hashes: dict[_Owner, list[int]] = {}

    def update(self, owner: _Owner, hashes: Sequence[int]) -> None:
        """Know of the blocks that an owner holds now; costs only what has changed."""
        known = self._hashes.setdefault(owner, [])
        while known and (len(known) > len(hashes) or known[-1] != hashes[len(known) - 1]):
            self._remove(owner, known.pop())
        for value in hashes[len(known) :]:
            self._owners.setdefault(value, set()).add(owner)
            known.append(value)

    def discard(self, owner: _Owner) -> None:
        """Forget an owner, known or not."""
        for value in self._hashes.pop(owner, ()):
            self._remove(owner, value)

    def nearest(self, hashes: Sequence[int], among: Sequence[_Owner]) -> tuple[list[_Owner], int]:
        """Return those of ``among`` that share the most blocks with a prompt, in order, and how many."""
        allowed = set(among)
        blocks, most = 0, len(hashes)
        while blocks < most:
            middle = (blocks + most + 1) // 2
            if allowed.isdisjoint(self._owners.get(hashes[middle - 1], ())):
                most = middle - 1
            else:
                blocks = middle
        if not blocks:
            return list(among), 0
        owners = self._owners[hashes[blocks - 1]]
        return [owner for owner in among if owner in owners], blocks

    def _remove(self, owner: _Owner, value: int) -> None:
        owners = self._owners[value]
        owners.discard(owner)
        if not owners:
            del self._owners[value]
