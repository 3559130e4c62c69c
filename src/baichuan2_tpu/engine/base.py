"""The seam between everything that generates text and everything that computes logits.

An engine owns the weights and the KV caches of its sequences. Generation, chat, server, benchmark and
evaluation know this module only. Not here: sampling, text, model files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from baichuan2_tpu.config import KvBits, ModelConfig
from baichuan2_tpu.engine.device.base import DeviceCounts
from baichuan2_tpu.errors import BackendError, ContextLengthError

__all__ = ["Chunk", "Engine", "RowUse", "Sequence", "check_room"]


class Sequence(ABC):
    """One conversation's tokens inside an engine; its KV cache lives in the engine."""

    @property
    @abstractmethod
    def length(self) -> int:
        """Number of tokens whose keys and values are held."""

    @abstractmethod
    def truncate(self, length: int) -> None:
        """Forget every token from ``length`` on.

        Raises: RequestError when ``length`` is negative or more than is held.
        """

    def copy_prefix(self, source: Sequence, length: int) -> None:
        """Hold the first ``length`` tokens of another sequence in place of what is held.

        Raises: RequestError when ``source`` holds less; BackendError where the engine cannot copy.
        """
        raise BackendError(f"this engine cannot copy {length} of {source.length} tokens; feed them instead")

    @abstractmethod
    def close(self) -> None:
        """Give the KV cache back; closing twice is allowed, any other use afterwards is not."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Chunk:
    """New tokens of one sequence, and how many of its last rows need logits.

    ``logit_rows`` is 0 for a piece of a prompt, 1 to continue from here, ``len(tokens)`` to check or score
    every token.
    """

    sequence: Sequence
    tokens: Items[int]
    logit_rows: int = 1


@dataclass(frozen=True, slots=True)
class RowUse:
    """The memory that all sequences of an engine share, in rows: one for the keys and values of one token.

    ``used`` rows are held by a sequence, ``shared`` ones by several that begin alike.
    """

    total: int
    used: int
    shared: int


class Engine(ABC):
    """Computes logits for ragged batches of tokens.

    A sequence's logits do not depend on what else is in the batch, nor on how its tokens are cut into
    chunks. Compiled models promise less, the same up to rounding: where a sequence's rows lie, and how many
    tokens a launch takes, changes the order in which attention adds (docs/engines.md has the bound).
    """

    name: str
    """Where it runs: "cpu", "bmrt", "bmrt-simulator", "sail"."""

    config: ModelConfig
    max_context: int
    """Tokens a sequence can hold."""

    max_sequences: int
    """Sequences that can be open at once."""

    kv_bits: KvBits = 16
    """Bits of the keys and values that sequences hold."""

    candidates: int
    """The most likely tokens of a row, as many as have known logits: the whole vocabulary, or fewer where a
    compiled head returns only its best tokens or the best one."""

    prompt_piece: int = 128
    """Tokens of a long prompt to feed at once: enough to be at full speed, few enough to be stopped soon. Of
    the default a 7B takes below 3 s on two cores; a compiled model has its largest stage here."""

    answers_per_step: int = 16
    """Answers to compute at the same time: more of them make a step longer than they save."""

    can_copy: bool = False
    """Whether ``Sequence.copy_prefix`` works, which then is much faster than to feed the same tokens."""

    copies_share: bool = False
    """Whether a copied prefix takes neither time nor memory: the sequences that have it own it together."""

    on_notice: Callable[[str], None] | None = None
    """What is told a line for the user when there is one, such as how slow a simulator is. Set it after
    opening."""

    @property
    def is_simulated(self) -> bool:
        """Whether a time measured on it says nothing of the chip."""
        return self.name.endswith("simulator")

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of memory that the keys and values of one token take."""
        return self.config.kv_bytes_per_token(self.kv_bits)

    @property
    def row_use(self) -> RowUse | None:
        """The memory that all sequences share, in rows; None where each has memory of its own."""
        return None

    def count_rows(self, prefixes: Iterable[tuple[Sequence, int]]) -> int:
        """Return how many rows the first tokens of some sequences take, a shared one counted once."""
        return sum(length for _, length in prefixes)

    @property
    def device_counts(self) -> DeviceCounts | None:
        """What a device has done since it was opened; None for an engine without one."""
        return None

    def sequences_of(self, length: int) -> int:
        """Return how many sequences of ``length`` tokens, 1 or more, can be held at once."""
        rows = self.row_use
        return self.max_sequences if rows is None else min(self.max_sequences, rows.total // length)

    def spare_tokens(self, answers: int) -> int:  # noqa: ARG002 - for engines that know more
        """Return how many tokens of prompts a step of ``answers`` tokens takes along for little more time.

        0 where that is not known beforehand.
        """
        return 0

    @abstractmethod
    def open_sequence(self) -> Sequence:
        """Return a new, empty sequence.

        Raises: BackendError when ``max_sequences`` are open already.
        """

    @abstractmethod
    def forward(self, chunks: Items[Chunk]) -> list[NDArray[np.float32]]:
        """Append every chunk's tokens to its sequence and return the logits that were asked for.

        Shapes: one array per chunk, (logit_rows, vocabulary), the last row for the chunk's last token. Where
        fewer ``candidates`` are known than that, all others are -inf; a single one has the logit 0. NaN are
        the logits of a sequence whose tokens overflow; the others' are not touched by it.
        Side effect: every sequence has grown by its chunk; on an error none has.
        Raises: ContextLengthError when a chunk does not fit; RequestError for an empty chunk, an unknown
        token id, or a sequence that appears twice; BackendError where the memory that all share is full.
        """

    @abstractmethod
    def close(self) -> None:
        """Free the weights and every sequence; closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_room(length: int, new_tokens: int, max_context: int) -> None:
    """Check that ``new_tokens`` more tokens fit behind ``length``.

    Raises: ContextLengthError naming both numbers.
    """
    if length + new_tokens > max_context:
        raise ContextLengthError(
            f"{length + new_tokens} tokens do not fit: the context holds {max_context}; "
            "shorten the input or open the model with a larger context"
        )
