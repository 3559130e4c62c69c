"""One step of the engine, cut into launches: which tokens each takes, what they see, which rows they fill.

Tokens without logits go first and those with logits last, whosever they are, so that one view of the last
states serves the head. Within a launch the order of tokens is free: the mask tells who sees whom. A launch
writes all rows of its stage, padding too, into a run of free rows; where no run is long enough, its new rows
are copied to free ones, or the step is cut into smaller launches: whichever costs less.
A net gathers the new keys and values behind the history that it was compiled for, in the same memory: a
stage of T tokens and S rows overwrites rows S to S + T - 1. So every launch has all rows in use, and the run
that it fills itself, within its S rows. Behind the last row there is memory for what the longest stages
gather; so launches whose new rows are copied have all rows within their S.
Source: seen on the simulator with TPU-MLIR 1.30.2, whose concatenation in place needs no copy of the history.
Not here: running a launch (``block_loop``), the sequences (``engine``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.compiled.net_plan import BlockStage, NetPlan
from baichuan2_tpu.engine.compiled.rows import FreeRuns, RowAllocator, Run
from baichuan2_tpu.engine.compiled.stage_costs import StageCosts

__all__ = ["Launch", "Part", "Step", "Work"]

Numbers = NDArray[np.int32]


@dataclass(eq=False, slots=True)
class Work:
    """The new tokens of one sequence in a step.

    ``held`` are the rows of the sequence before the step, and ``held_tokens`` its tokens; ``rows`` are those
    that the first ``done`` new tokens were given, ``logits`` what the head said.
    Shapes: held, held_tokens (length,); tokens (T,); logits (logit_rows, V).
    """

    held: Numbers
    held_tokens: Numbers
    tokens: Numbers
    logits: NDArray[np.float32]
    rows: list[Numbers] = field(default_factory=list[Numbers])

    @property
    def length(self) -> int:
        """Tokens held before the step."""
        return len(self.held)

    @property
    def done(self) -> int:
        """New tokens that have rows."""
        return sum(len(rows) for rows in self.rows)

    @property
    def silent(self) -> int:
        """New tokens that want no logits; they come first."""
        return len(self.tokens) - len(self.logits)

    @property
    def visible(self) -> Numbers:
        """Every row that the next token sees."""
        return np.concatenate([self.held, *self.rows])


@dataclass(frozen=True, slots=True)
class Part:
    """What a launch takes of one sequence: tokens ``start`` to ``start + len(places)`` of the new ones.

    ``places`` are their numbers in the launch, ascending as in the sequence. Below 0 are held tokens, counted
    from the last, which are computed again and get no rows.
    Shapes: places (T,); visible (rows seen,).
    """

    work: Work
    start: int
    places: Numbers
    visible: Numbers


@dataclass(frozen=True, slots=True)
class Launch:
    """One pass over all layers with one stage.

    Tokens from ``kept_from`` on fill rows: those of ``runs`` in turn, which are one run of all rows of the
    stage, padding too, if ``is_in_place``. The last ``logit_rows`` tokens want logits.
    Shapes: tokens, positions (count,); history_positions (S,).
    """

    stage: BlockStage
    tokens: Numbers
    positions: Numbers
    history_positions: Numbers
    parts: tuple[Part, ...]
    runs: tuple[Run, ...]
    kept_from: int
    is_in_place: bool
    logit_rows: int

    @property
    def count(self) -> int:
        """Tokens, without padding."""
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class _Segment:
    """Consecutive tokens of one sequence, all with logits or all without."""

    work: Work
    start: int
    count: int

    @property
    def has_logits(self) -> bool:
        return self.start >= self.work.silent

    def tokens(self) -> Numbers:
        source, start = self.work.tokens, self.start
        if start < 0:
            source, start = self.work.held_tokens, start + self.work.length
        return source[start : start + self.count]

    def positions(self) -> Numbers:
        first = self.work.length + self.start
        return np.arange(first, first + self.count, dtype=np.int32)


class Step:
    """Cuts new tokens into launches, and takes rows for them. There must be a free row for every token.

    Side effect: ``written`` are the rows that were launched into: owned ones, padding, and what nets
    overwrite.
    """

    def __init__(self, plan: NetPlan, costs: StageCosts, rows: RowAllocator, works: Items[Work]) -> None:
        self._plan = plan
        self._costs = costs
        self._rows = rows
        self._works = works
        self.written: list[Run] = []

    def launches(self) -> Iterator[Launch]:
        """Yield the launches; each must have run before the next one is asked for."""
        prompt = self._plan.prompt
        while prompt and (segments := self._prompt_segments(prompt)):
            yield self._launch(prompt, segments)
        while segments := self._segments():
            stage = self._choose(segments)
            yield self._launch(stage, _take(segments, stage.tokens))

    def _segments(self) -> list[_Segment]:
        """Return all tokens that are left, those without logits first."""
        silent = [_Segment(work, work.done, work.silent - work.done) for work in self._works]
        starts = [max(work.done, work.silent) for work in self._works]
        heard = [
            _Segment(work, start, len(work.tokens) - start)
            for work, start in zip(self._works, starts, strict=True)
        ]
        return [segment for segment in (*silent, *heard) if segment.count > 0]

    def _choose(self, segments: list[_Segment]) -> BlockStage:
        """Return the stage to launch next, by the cost of all launches from here on."""
        runs = self._rows.free_runs()
        count = sum(segment.count for segment in segments)

        def cost(stage: BlockStage) -> float:
            taken = min(stage.tokens, count)
            end = self._rows.reach(stage.tokens) + count - taken
            rest = self._cost_of_rest(count - taken, min(end, self._plan.rows), runs)
            return self._costs.of(stage) + self._cost_of_place(stage, taken, runs) + rest

        return min(self._fitting_stages(), key=cost)

    def _fitting_stages(self) -> Iterator[BlockStage]:
        """Yield by new tokens the cheapest stage that overwrites nothing, where there is one."""
        for tokens in self._costs.stages(self._rows.end):
            stage = self._costs.stages(self._rows.reach(tokens)).get(tokens)
            if stage is not None:
                yield stage

    def _cost_of_rest(self, count: int, rows: int, runs: FreeRuns) -> float:
        """Return about what ``count`` more tokens cost, as if the free rows were still those of now.

        Units: ``rows`` are in use in the end.
        """
        if count == 0:
            return 0
        stages = self._costs.stages(rows)
        first = stages[self._costs.first_size(count, rows)]
        together = self._costs.cheapest(count, rows) + self._cost_of_place(first, count, runs)
        return min(together, count * self._costs.of(stages[1]))

    def _cost_of_place(self, stage: BlockStage, kept: int, runs: FreeRuns) -> float:
        """Return what it costs to bring new rows to free ones, where the stage cannot write them there."""
        return 0 if runs.lowest(stage.tokens) else self._costs.copies(runs.number(kept))

    def _launch(self, stage: BlockStage, segments: list[_Segment]) -> Launch:
        tokens = np.concatenate([segment.tokens() for segment in segments])
        positions = np.concatenate([segment.positions() for segment in segments])
        kept_from = sum(segment.count for segment in segments if segment.start < 0)
        history_positions = self._rows.positions(stage.history)
        free = self._rows.free_runs()
        run = free.lowest(stage.tokens) if kept_from == 0 else None
        runs = (run,) if run else free.fewest(len(tokens) - kept_from)
        rows = np.concatenate([run.rows() for run in runs])[: len(tokens) - kept_from]
        parts = _parts(segments)
        self._rows.take(rows, positions[kept_from:])
        self.written += runs
        scratch = min(stage.tokens, self._plan.rows - stage.history) if stage.history else 0
        if scratch > 0:
            self.written.append(Run(stage.history, scratch))
        for part in parts:
            part.work.rows.append(rows[part.places[part.places >= kept_from] - kept_from])
        return Launch(
            stage=stage,
            tokens=tokens,
            positions=positions,
            history_positions=history_positions,
            parts=parts,
            runs=runs,
            kept_from=kept_from,
            is_in_place=run is not None,
            logit_rows=sum(segment.count for segment in segments if segment.has_logits),
        )

    def _prompt_segments(self, prompt: BlockStage) -> list[_Segment]:
        """Return what the prompt's stage should take, if it takes less time than token after token.

        It sees no history, so what a sequence holds is computed again before its new tokens.
        """
        room, counts = prompt.tokens, dict[Work, int]()
        for work in sorted(self._works, key=lambda work: -len(work.tokens)):
            count = min(len(work.tokens), room - work.length)
            if work.done == 0 and count > 0:
                counts[work] = count
                room -= work.length + count
        kept = sum(counts.values())
        if kept == 0:
            return []
        copies = self._cost_of_place(prompt, kept, self._rows.free_runs())
        is_worth = self._costs.of(prompt) + copies < self._costs.cheapest(kept, self._plan.rows)
        return _prompt_order(counts) if is_worth else []


def _prompt_order(counts: Mapping[Work, int]) -> list[_Segment]:
    """Return what is held, then the first new tokens of each sequence without logits, then those with."""
    held = [_Segment(work, -work.length, work.length) for work in counts]
    silent = [_Segment(work, 0, min(work.silent, count)) for work, count in counts.items()]
    heard = [_Segment(work, work.silent, count - work.silent) for work, count in counts.items()]
    return [segment for segment in (*held, *silent, *heard) if segment.count > 0]


def _take(segments: list[_Segment], tokens: int) -> list[_Segment]:
    """Return the first ``tokens`` tokens, or all."""
    taken: list[_Segment] = []
    for segment in segments:
        if tokens == 0:
            break
        taken.append(replace(segment, count=min(segment.count, tokens)))
        tokens -= taken[-1].count
    return taken


def _parts(segments: list[_Segment]) -> tuple[Part, ...]:
    """Gather the segments of each sequence."""
    places: dict[Work, list[Numbers]] = {}
    starts: dict[Work, int] = {}
    first = 0
    for segment in segments:
        numbers = np.arange(first, first + segment.count, dtype=np.int32)
        places.setdefault(segment.work, []).append(numbers)
        starts.setdefault(segment.work, segment.start)
        first += segment.count
    return tuple(
        Part(work, starts[work], np.concatenate(numbers), work.visible) for work, numbers in places.items()
    )
