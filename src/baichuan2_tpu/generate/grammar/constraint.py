"""What an answer asks of a grammar that it must follow.

Not here: the grammars there are (``grammars``), so that they alone need the library that compiles them.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Constraint", "Grammar"]


class Constraint(Protocol):
    """One answer's way through a grammar: ``mask`` a row, ``accept`` a token, until it ``is_complete``."""

    @property
    @abstractmethod
    def is_complete(self) -> bool:
        """Whether nothing can follow any more."""

    @abstractmethod
    def mask(self, logits: NDArray[np.float32], stop_ids: Collection[int]) -> NDArray[np.float32]:
        """Return the logits with -inf for every token that cannot follow.

        A stop id can follow where the grammar allows the end, any other control id never.

        Shapes: (V,) to (V,). Raises: RequestError when the grammar leaves no token.
        """

    @abstractmethod
    def accept(self, token_id: int) -> None:
        """Continue behind a token, which is not a stop id.

        Raises: RequestError when it cannot follow, or the grammar takes more work than is allowed.
        """


class Grammar(Protocol):
    """A compiled grammar, which any number of answers may follow."""

    @abstractmethod
    def start(self) -> Constraint:
        """Return a constraint before its first token."""
