"""The engine of compiled models: sequences of tokens on the nets of one bmodel, through any device.

Not here: the nets' arithmetic (``compile.nets``), cutting a step into launches (``step``), one launch
(``block_loop``), opening a bundle (``open_bundle``).
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.engine.base import Chunk, Engine, RowUse, Sequence
from baichuan2_tpu.engine.checks import (
    check_distinct,
    check_free_rows,
    check_new_sequence,
    check_truncation,
    checked_context,
    checked_tokens,
)
from baichuan2_tpu.engine.compiled.block_loop import BlockLoop
from baichuan2_tpu.engine.compiled.net_plan import HeadPlan, NetPlan
from baichuan2_tpu.engine.compiled.rows import RowAllocator, Run
from baichuan2_tpu.engine.compiled.stage_costs import StageCosts
from baichuan2_tpu.engine.compiled.step import Launch, Step, Work
from baichuan2_tpu.engine.device.base import Device, DeviceCounts
from baichuan2_tpu.errors import BackendError, RequestError

__all__ = ["BmodelEngine", "BmodelSequence"]

_MOST_SEQUENCES = 256
"""An open sequence without tokens takes no row; each has a list of its rows on the host, 8 bytes per token of
the context."""

_SPARE_SHARE = 1.2
"""How much longer a step may take that takes tokens of prompts along."""


class BmodelSequence(Sequence):
    """One sequence of a ``BmodelEngine``: its tokens, and the row of each in the history of all.

    ``sound`` counts the tokens before the first whose states were no numbers, where there is such a one.
    """

    def __init__(self, engine: BmodelEngine, rows: RowAllocator, max_context: int) -> None:
        self._engine: BmodelEngine | None = engine
        self._allocator = rows
        self._rows = np.empty(max_context, np.int32)
        self._tokens = np.empty(max_context, np.int32)
        self._length = 0
        self.sound: int | None = None

    @property
    def length(self) -> int:
        """Number of tokens whose keys and values are held."""
        return self._length

    @property
    def rows(self) -> NDArray[np.int32]:
        """The row of every token. Shapes: (length,)."""
        return self._rows[: self._length]

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Every token. Shapes: (length,)."""
        return self._tokens[: self._length]

    def belongs_to(self, engine: BmodelEngine) -> bool:
        """Tell whether this sequence was opened by ``engine``.

        Raises: BackendError after ``close()``.
        """
        if self._engine is None:
            raise BackendError("this sequence is closed; open a new one")
        return self._engine is engine

    def extend(self, tokens: NDArray[np.int32], rows: NDArray[np.int32]) -> None:
        """Hold tokens whose rows this sequence owns."""
        end = self._length + len(tokens)
        self._tokens[self._length : end] = tokens
        self._rows[self._length : end] = rows
        self._length = end

    def truncate(self, length: int) -> None:
        """Forget every token from ``length`` on."""
        check_truncation(self, length)
        self._allocator.release(self._rows[length : self._length])
        self._length = length
        if self.sound is not None and length <= self.sound:
            self.sound = None

    def copy_prefix(self, source: Sequence, length: int) -> None:
        """Own the rows of another sequence's first tokens with it: nothing is copied or computed."""
        if self._engine is None:
            raise BackendError("this sequence is closed; open a new one")
        if not isinstance(source, BmodelSequence) or source is self or not source.belongs_to(self._engine):
            raise RequestError("only another sequence of this engine can be copied")
        check_truncation(source, length)
        self._allocator.share(source.rows[:length])
        self.truncate(0)
        self.extend(source.tokens[:length], source.rows[:length])
        self.sound = source.sound if source.sound is not None and source.sound < length else None

    def close(self) -> None:
        """Give the rows back."""
        if self._engine is not None:
            self.truncate(0)
            self._engine.forget(self)
            self._engine = None


class BmodelEngine(Engine):
    """Runs a compiled model on ``device``, which it closes.

    ``embedding`` are the rows of the embedding where the bmodel has none; ``costs`` say which stages to take.
    All sequences have their keys and values in one history, and a step packs the new tokens of all of them
    into as few and as cheap launches as it can. Where the rows lie and how a step is cut may change a
    sequence's logits by rounding, for attention then adds in another order.
    Shapes: embedding (V, E).
    Raises: ArtifactError when the nets make no model.
    """

    can_copy = True
    copies_share = True

    def __init__(
        self,
        device: Device,
        plan: NetPlan,
        config: ModelConfig,
        *,
        costs: StageCosts | None = None,
        embedding: NDArray[Any] | None = None,
        context: int | None = None,
    ) -> None:
        self.name = device.name
        self.config = config
        self.max_context = checked_context(min(plan.rows, config.max_context), context)
        self.max_sequences = min(_MOST_SEQUENCES, plan.rows)
        self.candidates = plan.head.candidates
        self.prompt_piece = plan.most_tokens
        self.answers_per_step = max(Engine.answers_per_step, plan.head.stages[-1].tokens)
        self._plan = plan
        self._costs = costs or StageCosts(plan)
        self._device = device
        on_net_time = self._tell_time if self.is_simulated else None
        self._loop: BlockLoop | None = BlockLoop(
            device, plan, self._costs, embedding, on_net_time=on_net_time
        )
        self._rows = RowAllocator(plan.rows)
        self._unclean: list[Run] = []
        self._sequences: set[BmodelSequence] = set()

    @property
    def row_use(self) -> RowUse:
        """The rows of the history."""
        return self._rows.use

    def count_rows(self, prefixes: Iterable[tuple[Sequence, int]]) -> int:
        """Return how many rows the first tokens of some sequences take, a shared one counted once."""
        is_held = np.zeros(self._plan.rows, np.bool_)
        for sequence, length in prefixes:
            is_held[self._checked_sequence(sequence).rows[:length]] = True
        return int(np.count_nonzero(is_held))

    @property
    def device_counts(self) -> DeviceCounts:
        """What the device has done since it was opened."""
        return self._device.counts

    def spare_tokens(self, answers: int) -> int:
        """Return how many tokens of prompts lengthen a step of ``answers`` tokens by a fifth at most."""
        allowed_ms = _SPARE_SHARE * self._step_ms(answers)
        sizes = {stage.tokens for stage in self._plan.stages if stage.tokens > answers}
        cheap = [size for size in sizes if self._step_ms(size) <= allowed_ms]
        return max(cheap, default=answers) - answers

    def open_sequence(self) -> BmodelSequence:
        """Return a new, empty sequence."""
        self._open_loop()
        check_new_sequence(len(self._sequences), self.max_sequences)
        sequence = BmodelSequence(self, self._rows, self.max_context)
        self._sequences.add(sequence)
        return sequence

    def forward(self, chunks: Items[Chunk]) -> list[NDArray[np.float32]]:
        """Append every chunk's tokens to its sequence and return the logits that were asked for.

        What a head does not tell is -inf; a head that gives a token alone gives it the logit 0. A sequence
        whose states are no numbers gets NaN, now and until it is truncated to what was sound.
        """
        loop = self._open_loop()
        sequences = [self._checked_sequence(chunk.sequence) for chunk in chunks]
        check_distinct(sequences)
        tokens = [
            checked_tokens(chunk, max_context=self.max_context, vocabulary_size=self.config.vocabulary_size)
            for chunk in chunks
        ]
        check_free_rows(sum(map(len, tokens)), self._rows.use)
        works = [
            Work(
                sequence.rows,
                sequence.tokens,
                new,
                np.empty((chunk.logit_rows, self.config.vocabulary_size), np.float32),
            )
            for sequence, new, chunk in zip(sequences, tokens, chunks, strict=True)
        ]
        sound = [work for work, sequence in zip(works, sequences, strict=True) if sequence.sound is None]
        try:
            self._clean(loop)
            failed = self._compute_apart(loop, sound)
            for work in works:
                if work in failed or work not in sound:
                    self._spoil(work)
        except BaseException:
            self._give_up(works)
            raise
        for sequence, work in zip(sequences, works, strict=True):
            if work in failed:
                sequence.sound = sequence.length
            sequence.extend(work.tokens, np.concatenate(work.rows))
        return [work.logits for work in works]

    def forget(self, sequence: BmodelSequence) -> None:
        """Drop a closed sequence from the ones that count as open."""
        self._sequences.discard(sequence)

    def close(self) -> None:
        """Free the device and every sequence."""
        for sequence in list(self._sequences):
            sequence.close()
        self._loop = None
        self._device.close()

    def _step_ms(self, tokens: int) -> float:
        """Return about what the layers of a net take for ``tokens`` new tokens, where they would lie now."""
        return self._costs.cheapest(tokens, self._rows.reach(tokens))

    def _compute_apart(self, loop: BlockLoop, works: Items[Work]) -> list[Work]:
        """Compute all works together; where any state is no number, each alone. Return those that failed.

        A number that is none reaches every row of its launch: hidden rows count with weight zero, and zero
        times infinity is no number.
        """
        if self._compute(loop, works):
            return []
        if len(works) == 1:
            return list(works)
        return [work for work in works if not self._compute(loop, [work])]

    def _compute(self, loop: BlockLoop, works: Items[Work]) -> bool:
        """Fill rows and logits of some works; where a state is no number, return False and leave nothing."""
        step = Step(self._plan, self._costs, self._rows, works)
        for work in works:
            work.logits[:] = -np.inf
        is_done = False
        try:
            for launch in step.launches():
                outputs = loop.run(launch)
                if outputs is None:
                    break
                _fill(launch, self._plan.head, outputs)
            else:
                is_done = True
        finally:
            if not is_done:
                self._unclean += step.written
                self._give_up(works)
        if not is_done:
            self._clean(loop)
        return is_done

    def _clean(self, loop: BlockLoop) -> None:
        """Clear the rows that a failed launch may have left something in."""
        loop.history.clear(self._unclean)
        self._unclean.clear()

    def _give_up(self, works: Iterable[Work]) -> None:
        for work in works:
            for rows in work.rows:
                self._rows.release(rows)
            work.rows.clear()

    def _spoil(self, work: Work) -> None:
        """Give a work rows that hold nothing, and logits that are no numbers."""
        runs = self._rows.free_runs().fewest(len(work.tokens))
        rows = np.concatenate([run.rows() for run in runs])
        self._rows.take(rows, np.zeros_like(rows))
        work.rows.append(rows)
        work.logits[:] = np.nan

    def _tell_time(self, net_s: float) -> None:
        if self.on_notice is not None:
            count = len(self._plan.layers_of_net) + 1
            self.on_notice(
                f"the simulator took {net_s:.1f} s for the first of {count} nets: "
                f"expect about {net_s * count:.1f} s for the first token, less for each after it"
            )

    def _open_loop(self) -> BlockLoop:
        if self._loop is None:
            raise BackendError("this engine is closed; open the model again")
        return self._loop

    def _checked_sequence(self, sequence: Sequence) -> BmodelSequence:
        if not isinstance(sequence, BmodelSequence) or not sequence.belongs_to(self):
            raise RequestError("the sequence belongs to another engine; open it with this one")
        return sequence


def _fill(launch: Launch, head: HeadPlan, outputs: Items[NDArray[Any]]) -> None:
    """Write what the head gave for the last rows of a launch into the logits of their sequences."""
    first = launch.count - launch.logit_rows
    for part in launch.parts:
        is_heard = part.places >= first
        rows = np.flatnonzero(is_heard) + part.start - part.work.silent
        sources = part.places[is_heard] - first
        if not len(rows):
            continue
        if head.output == "logits":
            part.work.logits[rows] = outputs[0][sources]
        elif head.output == "sample":
            part.work.logits[rows[:, None], outputs[1][sources]] = outputs[0][sources]
        else:
            part.work.logits[rows, outputs[0][sources, 0]] = 0
