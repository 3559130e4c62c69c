"""The compiled grammars that are kept, since clients send the same few again and again.

Not here: compiling them (``grammars``).
"""

from __future__ import annotations

import weakref
from collections import Counter, OrderedDict
from threading import Lock

from baichuan2_tpu.errors import QueueFull
from baichuan2_tpu.generate.grammar.constraint import Grammar

__all__ = ["GrammarStore"]

_MOST_KEPT = 128
_MOST_KEPT_BYTES = 128 << 20
_LARGEST_BYTES = 16 << 20
"""A larger grammar is compiled anew each time; usual ones take some kilobytes."""
_MOST_USED_BYTES = 512 << 20
"""What all grammars take that are kept or that answers follow."""


class GrammarStore:
    """Keeps the latest grammars of each tenant, from any thread.

    A grammar serves its tenant alone: how soon an answer begins tells whether its grammar was kept. The room
    is everybody's; who has the most in it gives way first.
    """

    def __init__(self) -> None:
        self._lock = Lock()  # guards what follows
        self._kept: OrderedDict[tuple[str, str], tuple[Grammar, int]] = OrderedDict()
        self._used_bytes = 0

    def find(self, tenant: str, text: str) -> Grammar | None:
        """Return a tenant's compiled grammar, if it is kept."""
        with self._lock:
            if (tenant, text) not in self._kept:
                return None
            self._kept.move_to_end((tenant, text))
            return self._kept[tenant, text][0]

    def add(self, tenant: str, text: str, grammar: Grammar, size_bytes: int) -> None:
        """Count a grammar as long as somebody uses it, and keep it for others of its tenant if it is small.

        Raises: QueueFull where all that are in use have no room for it.
        """
        size_bytes += len(text)
        with self._lock:
            if self._used_bytes + size_bytes > _MOST_USED_BYTES:
                raise QueueFull("the schemas in use take all memory that is allowed; try again in 5 s", 5)
            self._used_bytes += size_bytes
            weakref.finalize(grammar, self._forget, size_bytes)
            if size_bytes <= _LARGEST_BYTES:
                self._kept[tenant, text] = grammar, size_bytes
            dropped: list[Grammar] = []  # it is forgotten behind the lock, which ``_forget`` takes
            while len(self._kept) > _MOST_KEPT or self._kept_bytes() > _MOST_KEPT_BYTES:
                dropped.append(self._kept.pop(self._least_worth())[0])

    def _forget(self, size_bytes: int) -> None:
        with self._lock:
            self._used_bytes -= size_bytes

    def _kept_bytes(self) -> int:
        return sum(size_bytes for _, size_bytes in self._kept.values())

    def _least_worth(self) -> tuple[str, str]:
        """Return the oldest grammar of the tenant that keeps the most."""
        sizes: Counter[str] = Counter()
        for (tenant, _), (_, size_bytes) in self._kept.items():
            sizes[tenant] += size_bytes
        largest = max(sizes, key=sizes.__getitem__)
        return next(key for key in self._kept if key[0] == largest)
