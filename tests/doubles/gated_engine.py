"""An engine that goes one step when a test says so."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Semaphore

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Chunk
from doubles.fakes import ByteTokenizer, HistoryEngine

__all__ = ["GatedEngine"]


class GatedEngine(HistoryEngine):
    """Goes one step for each time its gate is released; its answers have no end of their own."""

    def __init__(self, max_context: int, *, prompt_piece: int = HistoryEngine.prompt_piece) -> None:
        super().__init__(ByteTokenizer().vocabulary_size, max_context=max_context)
        self.prompt_piece = prompt_piece
        self.gate = Semaphore(0)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        row = super().logits(ids)
        row[ByteTokenizer.END_ID :] = -np.inf
        return row

    def forward(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        self.gate.acquire()
        return super().forward(chunks)
