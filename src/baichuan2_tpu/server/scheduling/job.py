"""A request while it is served: its answer, and the tokens an engine is to hold for it.

Not here: when it runs and beside what (``step``).
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.errors import DeadlineError
from baichuan2_tpu.generate.answer import Answer
from baichuan2_tpu.generate.block_hashes import BlockHashes
from baichuan2_tpu.generate.events import Stats, TextPiece
from baichuan2_tpu.generate.tracked_sequence import Feed, TrackedSequence
from baichuan2_tpu.server.scheduling.prefix_index import Prompt
from baichuan2_tpu.server.scheduling.ticket import Progress, Request, Ticket

__all__ = ["Job"]


class Job:
    """One request from ``start_s``, when it was submitted, to its end."""

    def __init__(self, request: Request, answer: Answer, start_s: float) -> None:
        self.client = request.client
        self.tenant = request.tenant
        self.ticket = Ticket()
        self.start_s = start_s
        self.was_run = False
        """Whether it was ever admitted; one that waits was then preempted."""
        self.ids = list(request.prompt_ids)
        """The tokens whose keys and values the next token needs: the prompt and the answer so far."""
        self._hashes = BlockHashes()
        self._hashes.update(self.ids)  # now, in the thread of its client
        self._answer = answer
        self._timeout_s = math.inf if request.timeout_s is None else request.timeout_s

    @property
    def is_over(self) -> bool:
        """Whether its ticket has the Result or an error."""
        return self.ticket.is_over

    @property
    def outcome(self) -> Literal["finished", "cancelled", "failed"]:
        """How it ended."""
        if self.ticket.is_failed:
            return "failed"
        return "cancelled" if self._answer.result().finish_reason == "cancelled" else "finished"

    @property
    def stats(self) -> Stats:
        """What it has taken so far."""
        return self._answer.result().stats

    @property
    def is_scoring(self) -> bool:
        """Whether it needs a row of logits for every token it is fed."""
        return self._answer.is_scoring

    @property
    def prompt(self) -> Prompt:
        """The ids as what a sequence is to hold."""
        return Prompt(self.ids, self._hashes.update(self.ids), self.tenant)

    def start(self, sequence: TrackedSequence) -> None:
        """Continue from what a sequence holds of the ids, as far as it can be reused."""
        if self.is_scoring:
            sequence.keep_prefix(self._answer.reusable_ids)
        if not self.was_run:
            self._answer.reused_tokens = sequence.length
        self.was_run = True
        self.ticket.progress = Progress(sequence.length, len(self.ids))

    @property
    def is_reading(self) -> bool:
        """Whether it runs and more than its latest token is to be fed."""
        progress = self.ticket.progress
        return progress is not None and not progress.is_complete

    def note_fed(self, sequence: TrackedSequence) -> None:
        """Show how far the prompt is; without effect for an answer that is being written."""
        if self.is_reading:
            self.ticket.progress = Progress(sequence.length, len(self.ids))

    def preempt(self) -> None:
        """Wait again."""
        self.ticket.progress = None

    def feed(self, sequence: TrackedSequence, count: int) -> Feed:
        """Return the next ``count`` ids that the sequence lacks.

        Logits are requested after the last id of all, or after each while the prompt is scored.
        """
        end = sequence.length + count
        rows = count if self.is_scoring else int(end == len(self.ids))
        return Feed(sequence, self.ids[sequence.length : end], rows)

    def give_up(self, now_s: float) -> None:
        """End the answer if it was cancelled or is late."""
        if self.ticket.is_cancelled:
            self._answer.cancel()
            self._finish()
        elif now_s - self.start_s >= self._timeout_s:
            self.ticket.put(
                DeadlineError(f"the answer is not complete after {self._timeout_s:g} s; allow more")
            )

    def advance(self, logits: NDArray[np.float32], length: int) -> None:
        """Take the logits of the newest of ``length`` tokens: score the prompt, and choose the next token.

        Shapes: logits (T, V). Side effect: events are put on the ticket.
        """
        scores = self._answer.score(logits, length - len(logits))
        if scores is not None:
            self.ticket.put(scores)
        if length == len(self.ids):
            self._choose(logits[-1])

    def _choose(self, logits: NDArray[np.float32]) -> None:
        chosen = self._answer.choose(logits)
        self._answer.start_token()
        if chosen is not None:
            self.ticket.put(chosen)
            self._put_text(self._answer.read(chosen.token_id))
            self.ids.append(chosen.token_id)
        if self._answer.is_over:
            self._finish()

    def _finish(self) -> None:
        self._put_text(self._answer.read_rest())
        self.ticket.put(self._answer.result())

    def _put_text(self, text: str) -> None:
        if text:
            self.ticket.put(TextPiece(text))
