"""What every engine checks of a request before it computes.

Not here: checks of a model (``compiled.open_bundle``, ``cpu``), of devices (``device.checks``).
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Chunk, RowUse, Sequence, check_room
from baichuan2_tpu.errors import BackendError, RequestError

__all__ = [
    "check_distinct",
    "check_free_rows",
    "check_new_sequence",
    "check_truncation",
    "checked_context",
    "checked_tokens",
]


def checked_context(allowed: int, context: int | None) -> int:
    """Return the context asked for, or the longest one.

    Raises: RequestError naming both numbers.
    """
    if context is None:
        return allowed
    if not 1 <= context <= allowed:
        raise RequestError(f"a context of {context} tokens is not possible: this model allows 1 to {allowed}")
    return context


def check_new_sequence(open_sequences: int, max_sequences: int) -> None:
    """Check that one more sequence may be opened."""
    if open_sequences >= max_sequences:
        raise BackendError(f"{max_sequences} sequences are open already; close one first")


def check_free_rows(new_tokens: int, rows: RowUse) -> None:
    """Check that the memory that all sequences share has a row for each of ``new_tokens`` tokens.

    Raises: BackendError naming the numbers.
    """
    free = rows.total - rows.used
    if new_tokens > free:
        raise BackendError(
            f"{new_tokens} new tokens do not fit: of {rows.total} rows that all sequences share {free} are "
            "free; close a sequence or truncate one, or compile with more --rows"
        )


def check_truncation(sequence: Sequence, length: int) -> None:
    """Check that a sequence can be cut to ``length`` tokens."""
    if not 0 <= length <= sequence.length:
        raise RequestError(f"cannot truncate to {length} tokens: the sequence holds {sequence.length}")


def check_distinct(sequences: Items[Sequence]) -> None:
    """Check that no sequence appears twice in a batch."""
    if len({id(sequence) for sequence in sequences}) < len(sequences):
        raise RequestError("a sequence appears twice in one batch; give it one chunk")


def checked_tokens(chunk: Chunk, *, max_context: int, vocabulary_size: int) -> NDArray[np.int32]:
    """Return the tokens of a chunk that fits its sequence. Shapes: (T,).

    Raises: RequestError for no tokens, too many rows or an unknown token; ContextLengthError.
    """
    count = len(chunk.tokens)
    if count == 0:
        raise RequestError("a chunk has no tokens; give at least one")
    if not 0 <= chunk.logit_rows <= count:
        raise RequestError(
            f"{chunk.logit_rows} rows of logits asked for, a chunk of {count} has 0 to {count}"
        )
    check_room(chunk.sequence.length, count, max_context)
    tokens = np.asarray(chunk.tokens, np.int64)
    wrong = tokens[(tokens < 0) | (tokens >= vocabulary_size)]
    if wrong.size:
        raise RequestError(f"token {wrong[0]} is outside the vocabulary of {vocabulary_size}")
    return tokens.astype(np.int32)
