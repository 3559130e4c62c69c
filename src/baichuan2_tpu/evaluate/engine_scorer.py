"""Score passages with an engine: a beginning that passages share is read once, short ends are read together.

Not here: answering (``batch_answers``), what a passage is (``passages``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

from baichuan2_tpu.engine.base import Engine, check_room
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.evaluate.passages import (
    Passage,
    PassageScore,
    Progress,
    Reading,
    RowCollector,
    readings_of,
)
from baichuan2_tpu.generate.answer import SCORED_ROWS
from baichuan2_tpu.generate.tracked_sequence import Feed, TrackedSequence, common_prefix, feed_together

__all__ = ["EngineScorer"]

_READ_TOGETHER = 8
"""Ends read at once: a decoding step reads every weight, however many sequences it is for."""


class EngineScorer:
    """Scores with an engine that stays the caller's."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._together = _READ_TOGETHER if engine.can_copy else 1

    @property
    def max_context(self) -> int:
        """Tokens that can stand before a scored one."""
        return self._engine.max_context

    def score(self, passages: Sequence[Passage], on_progress: Progress | None = None) -> list[PassageScore]:
        """Score every passage; see ``Scorer``.

        Raises: RequestError also for an engine that does not know every logit.
        """
        self._check_logits()
        readings = readings_of(passages)
        for reading in readings:
            check_room(0, len(reading.ids), self._engine.max_context)
        longest = max((len(reading.ids) for reading in readings), default=1)
        together = min(self._together, self._engine.sequences_of(longest))
        scores: dict[int, PassageScore] = {}
        with ExitStack() as stack:
            sequences = [
                stack.enter_context(TrackedSequence(self._engine))
                for _ in range(min(together, len(readings)))
            ]
            for group, shared in self._groups(readings, together):
                collectors = [RowCollector(reading, passages) for reading in group]
                self._share(sequences[: len(group)], group[0].ids, shared)
                self._read(sequences, group, shared, collectors)
                for collector in collectors:
                    collector.put(scores)
                if on_progress is not None:
                    on_progress(len(scores), len(passages))
        return [scores[place] for place in range(len(passages))]

    def _check_logits(self) -> None:
        """Check that every token has a logit.

        Raises: RequestError.
        """
        engine = self._engine
        if engine.candidates < engine.config.vocabulary_size:
            known = "token" if engine.candidates == 1 else f"{engine.candidates} tokens"
            raise RequestError(
                f"engine {engine.name} knows only the most likely {known} of each step, and a score needs "
                "the logits of all; use the checkpoint, or a bundle compiled with --head-output logits"
            )

    def _groups(self, readings: Sequence[Reading], together: int) -> Iterator[tuple[list[Reading], int]]:
        """Yield neighbours that are read together, and how many ids they share that want no rows.

        What is behind the shared ids must be little: one long prompt keeps the processor busy by itself.
        """
        group: list[Reading] = []
        shared = 0
        for reading in readings:
            if group:
                wished = min(shared, reading.first_row, common_prefix(group[0].ids, reading.ids))
                new_tokens = sum(len(member.ids) - wished for member in (*group, reading))
                if len(group) < together and new_tokens <= self._engine.prompt_piece:
                    group.append(reading)
                    shared = wished
                    continue
                yield group, shared
            group, shared = [reading], reading.first_row
        if group:
            yield group, shared

    def _share(self, sequences: Sequence[TrackedSequence], ids: tuple[int, ...], shared: int) -> None:
        """Let every sequence hold the first ``shared`` ids: the first reads them, the others copy."""
        first, *others = sequences
        piece = self._engine.prompt_piece
        for start in range(first.keep_prefix(ids[: shared + 1]), shared, piece):
            first.feed(ids[start : min(start + piece, shared)], 0)
        for other in others:
            other.copy_prefix(first, shared)

    def _read(
        self,
        sequences: Sequence[TrackedSequence],
        group: Sequence[Reading],
        shared: int,
        collectors: Sequence[RowCollector],
    ) -> None:
        """Read what is behind the shared ids, and hand out the rows."""
        step = SCORED_ROWS if len(group) == 1 else self._engine.prompt_piece
        for start in range(shared, max(len(reading.ids) for reading in group), step):
            feeds: list[Feed] = []
            takers: list[RowCollector] = []
            for sequence, reading, collector in zip(sequences, group, collectors, strict=False):
                ids = reading.ids[start : start + step]
                if ids:
                    feeds.append(Feed(sequence, ids, reading.rows_until(start, start + len(ids))))
                    takers.append(collector)
            for collector, rows in zip(takers, feed_together(feeds), strict=True):
                collector.take(rows)
