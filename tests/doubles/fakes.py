"""Stand-ins for an engine and a tokenizer that keep the interfaces' promises and compute nothing.

They keep the whole contract of ``engine/base.py``, errors included: code that passes here passes there.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.engine.base import Chunk, Engine, RowUse, Sequence, check_room
from baichuan2_tpu.errors import BackendError, RequestError
from baichuan2_tpu.text.tokenizer import Tokenizer, check_text

__all__ = [
    "ByteTokenizer",
    "FakeEngine",
    "FakeSequence",
    "HistoryEngine",
    "RowEngine",
    "ScriptedEngine",
    "one_hot",
]


class ByteTokenizer(Tokenizer):
    """Ids 0 to 255 are bytes; an end token and the control ids that were asked for follow."""

    END_ID = 256

    def __init__(self, controls: Items[str] = ("<reserved_106>", "<reserved_107>")) -> None:
        self._control_ids = {name: self.END_ID + 1 + index for index, name in enumerate(controls)}

    @property
    def vocabulary_size(self) -> int:
        return self.END_ID + 1 + len(self._control_ids)

    @property
    def stop_ids(self) -> frozenset[int]:
        return frozenset({self.END_ID})

    @property
    def longest_token(self) -> int:
        return 1

    def encode(self, text: str) -> list[int]:
        check_text(text)
        return list(text.encode("utf-8"))

    def token_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.vocabulary_size:
            raise RequestError(f"token id {token_id} is not in the vocabulary")
        return bytes([token_id]) if token_id < self.END_ID else b""

    def control_id(self, name: str) -> int | None:
        return self._control_ids.get(name)


class FakeSequence(Sequence):
    """The tokens of a sequence, in place of their keys and values."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.ids: list[int] = []
        self.is_closed = False

    @property
    def length(self) -> int:
        self._check_open()
        return len(self.ids)

    def truncate(self, length: int) -> None:
        self._check_open()
        if not 0 <= length <= len(self.ids):
            raise RequestError(f"cannot truncate to {length} tokens; 0 to {len(self.ids)} are allowed")
        del self.ids[length:]

    def copy_prefix(self, source: Sequence, length: int) -> None:
        assert isinstance(source, FakeSequence)
        assert source is not self
        assert source.engine is self.engine
        if not 0 <= length <= source.length:
            raise RequestError(f"cannot copy {length} tokens; 0 to {source.length} are allowed")
        self._check_open()
        self.ids = source.ids[:length]

    def close(self) -> None:
        if not self.is_closed:
            self.is_closed = True
            self.engine.open_sequences -= 1

    def _check_open(self) -> None:
        assert not self.is_closed, "a closed sequence was used"


class FakeEngine(Engine):
    """Everything an engine does but the logits; keeps every chunk it was fed in ``fed``."""

    name = "fake"
    can_copy = True

    def __init__(self, vocabulary_size: int, *, max_context: int = 64, max_sequences: int = 4) -> None:
        self.config = ModelConfig(
            hidden_size=1,
            intermediate_size=1,
            layers=1,
            heads=1,
            kv_heads=1,
            head_size=1,
            vocabulary_size=vocabulary_size,
            norm_eps=1e-6,
            position="rope",
            rope_theta=10_000.0,
            max_context=max_context,
            is_head_tied=False,
            is_head_normalized=True,
            bos_id=None,
            eos_ids=(),
        )
        self.max_context = max_context
        self.max_sequences = max_sequences
        self.candidates = vocabulary_size
        self.open_sequences = 0
        self.fed: list[list[int]] = []
        self.fail_after: int | None = None
        """Number of calls of ``forward`` after which each raises BackendError."""

    def open_sequence(self) -> FakeSequence:
        if self.open_sequences == self.max_sequences:
            raise BackendError(f"{self.max_sequences} sequences are open, no more are allowed")
        self.open_sequences += 1
        return FakeSequence(self)

    def forward(self, chunks: Items[Chunk]) -> list[NDArray[np.float32]]:
        sequences = [self._check(chunk) for chunk in chunks]
        if len({id(sequence) for sequence in sequences}) < len(sequences):
            raise RequestError("a sequence appears twice in one call")
        if self.fail_after == 0:
            raise BackendError("the engine was told to fail")
        if self.fail_after is not None:
            self.fail_after -= 1
        rows = [self._rows(sequence.ids, chunk) for sequence, chunk in zip(sequences, chunks, strict=True)]
        for sequence, chunk in zip(sequences, chunks, strict=True):
            sequence.ids += chunk.tokens
            self.fed.append(list(chunk.tokens))
        return rows

    def close(self) -> None:
        self.open_sequences = 0

    def logits(self, ids: Items[int]) -> NDArray[np.float32]:
        """Return the logits after ``ids``, the whole history of a sequence."""
        raise NotImplementedError

    def _rows(self, past: list[int], chunk: Chunk) -> NDArray[np.float32]:
        total = [*past, *chunk.tokens]
        ends = range(len(total) - chunk.logit_rows + 1, len(total) + 1)
        rows = [self.logits(total[:end]) for end in ends]
        return np.array(rows, np.float32).reshape(len(rows), self.config.vocabulary_size)

    def _check(self, chunk: Chunk) -> FakeSequence:
        sequence = chunk.sequence
        assert isinstance(sequence, FakeSequence)
        check_room(sequence.length, len(chunk.tokens), self.max_context)
        if not chunk.tokens or not 0 <= chunk.logit_rows <= len(chunk.tokens):
            raise RequestError(f"a chunk of {len(chunk.tokens)} tokens cannot give {chunk.logit_rows} rows")
        if not all(0 <= token_id < self.config.vocabulary_size for token_id in chunk.tokens):
            raise RequestError(f"unknown token id in {chunk.tokens}")
        return sequence


class ScriptedEngine(FakeEngine):
    """Returns the logits that were enqueued, one array per row, whatever it is fed."""

    def __init__(self, vocabulary_size: int, *, max_context: int = 64, max_sequences: int = 4) -> None:
        super().__init__(vocabulary_size, max_context=max_context, max_sequences=max_sequences)
        self._script: deque[NDArray[np.float32]] = deque()

    def enqueue(self, logits: NDArray[np.float32]) -> None:
        """Append one row of logits (vocabulary,) to the script."""
        assert logits.shape == (self.config.vocabulary_size,)
        self._script.append(logits)

    def enqueue_ids(self, ids: Items[int]) -> None:
        """Append a row for each id, in which that id is by far the most likely."""
        for token_id in ids:
            self.enqueue(one_hot(token_id, self.config.vocabulary_size))

    @property
    def rows_left(self) -> int:
        """Rows of the script that are not used yet."""
        return len(self._script)

    def logits(self, ids: Items[int]) -> NDArray[np.float32]:
        assert self._script, "the script is at its end; enqueue more logits"
        return self._script.popleft()


class HistoryEngine(FakeEngine):
    """Draws logits from the whole history, so that one wrong token changes all that follow."""

    def logits(self, ids: Items[int]) -> NDArray[np.float32]:
        return np.random.default_rng(list(ids)).standard_normal(self.config.vocabulary_size, np.float32)


class RowSequence(FakeSequence):
    """A sequence whose tokens lie in rows that it may share with others."""

    def __init__(self, engine: FakeEngine) -> None:
        super().__init__(engine)
        self.rows: list[int] = []

    def truncate(self, length: int) -> None:
        super().truncate(length)
        del self.rows[length:]

    def copy_prefix(self, source: Sequence, length: int) -> None:
        super().copy_prefix(source, length)
        assert isinstance(source, RowSequence)
        self.rows = source.rows[:length]

    def close(self) -> None:
        super().close()
        self.rows = []


class RowEngine(HistoryEngine):
    """All sequences share ``rows`` rows, as on a compiled model; a step fails that needs more."""

    def __init__(
        self, vocabulary_size: int, rows: int, *, max_context: int = 64, max_sequences: int = 4
    ) -> None:
        super().__init__(vocabulary_size, max_context=max_context, max_sequences=max_sequences)
        self._total = rows
        self._opened: list[RowSequence] = []
        self._next_row = 0

    @property
    def row_use(self) -> RowUse:
        held = Counter(row for sequence in self._opened for row in sequence.rows)
        return RowUse(self._total, len(held), sum(owners > 1 for owners in held.values()))

    def count_rows(self, prefixes: Iterable[tuple[Sequence, int]]) -> int:
        rows: set[int] = set()
        for sequence, length in prefixes:
            assert isinstance(sequence, RowSequence)
            rows.update(sequence.rows[:length])
        return len(rows)

    def open_sequence(self) -> RowSequence:
        super().open_sequence()
        self._opened.append(RowSequence(self))
        return self._opened[-1]

    def forward(self, chunks: Items[Chunk]) -> list[NDArray[np.float32]]:
        count = sum(len(chunk.tokens) for chunk in chunks)
        if count > self._total - self.row_use.used:
            raise BackendError(f"{count} tokens need rows, {self.row_use} has fewer")
        logits = super().forward(chunks)
        for chunk in chunks:
            assert isinstance(chunk.sequence, RowSequence)
            rows = range(self._next_row, self._next_row + len(chunk.tokens))
            chunk.sequence.rows += rows
            self._next_row = rows.stop
        return logits


def one_hot(token_id: int, vocabulary_size: int) -> NDArray[np.float32]:
    """Return logits that leave no doubt about ``token_id``."""
    logits = np.zeros(vocabulary_size, np.float32)
    logits[token_id] = 100.0
    return logits
