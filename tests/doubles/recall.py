"""A model that knows some lines by heart and nothing else, as evaluation sees one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.evaluate import EngineScorer, Subject
from baichuan2_tpu.text.template import BaichuanTemplate
from doubles.fakes import ByteTokenizer, FakeEngine

__all__ = ["RecallEngine", "recall_subject"]

TOKENIZER = ByteTokenizer()
USER, ASSISTANT = ByteTokenizer.END_ID + 1, ByteTokenizer.END_ID + 2


class RecallEngine(FakeEngine):
    """Continues the line that begins like the text it has read; after other texts all tokens are alike."""

    def __init__(self, lines: Sequence[str], *, max_context: int = 256, max_sequences: int = 4) -> None:
        super().__init__(TOKENIZER.vocabulary_size, max_context=max_context, max_sequences=max_sequences)
        self.config = replace(self.config, eos_ids=(TOKENIZER.END_ID,))
        self._lines = [tuple(TOKENIZER.encode(line)) for line in lines]

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        row = np.zeros(self.config.vocabulary_size, np.float32)
        # Role marks, and the token before a text, are not part of a line.
        seen = tuple(token_id for token_id in ids if token_id < TOKENIZER.END_ID)
        for line in self._lines:
            if line[: len(seen)] == seen:
                row[line[len(seen)] if len(seen) < len(line) else TOKENIZER.END_ID] = 30
        return row


def recall_subject(*lines: str, **settings: int) -> Subject:
    """Return an open model that knows these lines."""
    engine = RecallEngine(lines, **settings)
    return Subject(
        name="recall",
        engine_name=engine.name,
        weights="none",
        config=engine.config,
        scorer=EngineScorer(engine),
        tokenizer=TOKENIZER,
        template=BaichuanTemplate(TOKENIZER, USER, ASSISTANT),
        engine=engine,
    )
