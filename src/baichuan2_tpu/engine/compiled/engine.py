"""The engine of compiled models: sequences of tokens on the nets of one bmodel, through any device.

Not here: the nets' arithmetic (compiled), one launch (``block_loop``), opening a bundle (``bundle``).
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.engine.base import Chunk, Engine, Sequence
from baichuan2_tpu.engine.checks import (
    check_distinct,
    check_new_sequence,
    check_truncation,
    checked_context,
    checked_tokens,
)
from baichuan2_tpu.engine.compiled.block_loop import BlockLoop
from baichuan2_tpu.engine.compiled.kv_rows import SavedRows
from baichuan2_tpu.engine.compiled.net_plan import NetPlan
from baichuan2_tpu.engine.device.base import Device
from baichuan2_tpu.errors import BackendError, RequestError

__all__ = ["BmodelEngine", "BmodelSequence"]

_MAX_SEQUENCES = 16


class BmodelSequence(Sequence):
    """One sequence of a ``BmodelEngine``.

    Units: ``filled`` rows of keys and values are in the active memory while the sequence is active there;
    ``saved`` of them are in ``store`` too.
    """

    def __init__(self, engine: BmodelEngine) -> None:
        self._engine: BmodelEngine | None = engine
        self._tokens: list[int] = []
        self.filled = 0
        self.saved = 0
        self.store: SavedRows | None = None

    @property
    def length(self) -> int:
        """Number of tokens whose keys and values are held."""
        return len(self._tokens)

    def belongs_to(self, engine: BmodelEngine) -> bool:
        """Tell whether this sequence was opened by ``engine``.

        Raises: BackendError after ``close()``.
        """
        if self._engine is None:
            raise BackendError("this sequence is closed; open a new one")
        return self._engine is engine

    def held(self, start: int) -> list[int]:
        """Return the tokens from number ``start`` on."""
        return self._tokens[start:]

    def extend(self, tokens: Items[int]) -> None:
        """Hold tokens whose rows are filled."""
        self._tokens.extend(tokens)

    def truncate(self, length: int) -> None:
        """Forget every token from ``length`` on."""
        check_truncation(self, length)
        del self._tokens[length:]

    def close(self) -> None:
        """Give the cache back."""
        if self._engine is not None:
            self._engine.forget(self)
            self._engine = None
            self.store = None


class BmodelEngine(Engine):
    """Runs a compiled model on ``device``, which it closes.

    ``embedding`` are the rows of the embedding where the bmodel has none. One sequence at a time has its keys
    and values where the blocks read them; another one's are saved and restored when it takes its turn, so a
    batch runs sequence after sequence. A sequence's logits are the same bits whatever else is in the batch.
    How its tokens are cut into chunks may change them by rounding, for stages of different lengths add in
    different orders.
    Shapes: embedding (V, E).
    Raises: ArtifactError when the nets make no model.
    """

    max_sequences = _MAX_SEQUENCES

    def __init__(
        self,
        device: Device,
        plan: NetPlan,
        config: ModelConfig,
        *,
        embedding: NDArray[Any] | None = None,
        context: int | None = None,
    ) -> None:
        self.name = device.name
        self.config = config
        self.max_context = checked_context(min(plan.context, config.max_context), context)
        self.candidates = plan.head.candidates
        self.prompt_piece = plan.stages[-1].tokens
        self._plan = plan
        self._device = device
        self._loop: BlockLoop | None = BlockLoop(device, plan, embedding)
        self._sequences: set[BmodelSequence] = set()
        self._active: BmodelSequence | None = None

    def open_sequence(self) -> BmodelSequence:
        """Return a new, empty sequence."""
        self._open_loop()
        check_new_sequence(len(self._sequences), self.max_sequences)
        sequence = BmodelSequence(self)
        self._sequences.add(sequence)
        return sequence

    def forward(self, chunks: Items[Chunk]) -> list[NDArray[np.float32]]:
        """Append every chunk's tokens to its sequence and return the logits that were asked for.

        What a head does not tell is -inf; a head that gives a token alone gives it the logit 0.
        """
        loop = self._open_loop()
        sequences = [self._checked_sequence(chunk) for chunk in chunks]
        check_distinct(sequences)
        tokens = [
            checked_tokens(chunk, max_context=self.max_context, vocabulary_size=self.config.vocabulary_size)
            for chunk in chunks
        ]
        logits = [
            self._append(loop, sequence, new, chunk.logit_rows)
            for sequence, new, chunk in zip(sequences, tokens, chunks, strict=True)
        ]
        for sequence, new in zip(sequences, tokens, strict=True):
            sequence.extend(new.tolist())
        return logits

    def forget(self, sequence: BmodelSequence) -> None:
        """Drop a closed sequence from the ones that count as open."""
        self._sequences.discard(sequence)
        if self._active is sequence:
            self._active = None

    def close(self) -> None:
        """Free the device and every sequence."""
        for sequence in list(self._sequences):
            sequence.close()
        self._loop = None
        self._device.close()

    def _append(
        self, loop: BlockLoop, sequence: BmodelSequence, tokens: NDArray[np.int32], rows: int
    ) -> NDArray[np.float32]:
        self._activate(loop, sequence)
        start = self._plan.start(sequence.length, len(tokens))
        tokens = np.concatenate([np.array(sequence.held(start), np.int32), tokens])
        sequence.saved = min(sequence.saved, start)
        logits = np.full((rows, self.config.vocabulary_size), -np.inf, np.float32)
        done, first = 0, len(tokens) - rows
        for piece in self._plan.cut(start, len(tokens)):
            states = loop.run(piece, tokens[done : done + piece.count], start + done)
            for row in range(max(first - done, 0), piece.count):
                self._fill(logits[done + row - first], loop.head(states, row))
            done += piece.count
            sequence.filled = max(sequence.filled, start + done)
        return logits

    def _fill(self, row: NDArray[np.float32], outputs: list[NDArray[Any]]) -> None:
        """Write what the head gives into a row of logits. Shapes: row (V,)."""
        output = self._plan.head.output
        if output == "logits":
            row[:] = outputs[0].ravel()
        elif output == "sample":
            row[outputs[1].ravel()] = outputs[0].ravel()
        else:
            row[outputs[0].item()] = 0

    def _activate(self, loop: BlockLoop, sequence: BmodelSequence) -> None:
        """Put the rows of a sequence where the blocks read them."""
        # A truncation, or a batch that failed, has left rows that are to be written anew.
        sequence.saved = min(sequence.saved, sequence.length)
        if sequence is not self._active:
            self._deactivate(loop)
            if sequence.store is not None and sequence.length:
                sequence.store.restore(sequence.length)
            self._active = sequence
        sequence.filled = sequence.length

    def _deactivate(self, loop: BlockLoop) -> None:
        active = self._active
        if active is not None and active.filled > active.saved:
            if active.store is None:
                active.store = loop.rows.new_store()
            active.store.save(active.saved, active.filled)
            active.saved = active.filled
        self._active = None

    def _open_loop(self) -> BlockLoop:
        if self._loop is None:
            raise BackendError("this engine is closed; open the model again")
        return self._loop

    def _checked_sequence(self, chunk: Chunk) -> BmodelSequence:
        if not isinstance(chunk.sequence, BmodelSequence) or not chunk.sequence.belongs_to(self):
            raise RequestError("a chunk's sequence belongs to another engine; open it with this one")
        return chunk.sequence
