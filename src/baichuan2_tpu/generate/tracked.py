"""A sequence of an engine together with the ids it holds, so that a new prompt can go on from an old one.

Not here: choosing which sequence a prompt should go on from (``chat``, the server's scheduler).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from itertools import takewhile
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from baichuan2_tpu.engine.base import Chunk, Engine

__all__ = ["TrackedSequence"]


class TrackedSequence:
    """One sequence and its ids; open until ``close``, or to the end of a ``with``."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._sequence = engine.open_sequence()
        self._ids: list[int] = []

    @property
    def ids(self) -> tuple[int, ...]:
        """The ids whose keys and values the engine holds."""
        return tuple(self._ids)

    def keep_prefix(self, prompt_ids: Items[int]) -> int:
        """Forget what is not the beginning of the prompt, and return how many ids stay.

        The prompt's last id never stays: it must be fed to get logits.
        """
        pairs = zip(self._ids, prompt_ids[:-1], strict=False)
        self.truncate(sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        return len(self._ids)

    def truncate(self, length: int) -> None:
        """Forget every id from ``length`` on."""
        # The engine holds more than is known here when a call to it was interrupted on its way back.
        self._sequence.truncate(length)
        del self._ids[length:]

    def feed(self, ids: Items[int], logit_rows: int = 1) -> NDArray[np.float32]:
        """Append ids and return the logits of the last ones.

        Shapes: (logit_rows, V). Raises: what ``Engine.forward`` raises, and then nothing was appended.
        """
        logits = self.engine.forward([Chunk(self._sequence, ids, logit_rows)])[0]
        self._ids += ids
        return logits

    def close(self) -> None:
        """Give the engine's memory back; closing twice is allowed."""
        self._sequence.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
