"""Random schedules of sequences in one history: each has the logits of its own tokens alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from baichuan2_tpu.engine.base import Chunk, Sequence
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.net_plan import plan_nets
from baichuan2_tpu.errors import DeviceError
from doubles.numpy_device import NumpyDevice, rounded
from models.random_model import float_weights, random_weights
from models.reference import reference_logits

MODELS = {name: random_weights(name, 8) for name in ("grouped", "alibi")}
FLOATS = {name: float_weights(model) for name, model in MODELS.items()}
ROWS, CONTEXT = 72, 40
SHARE_ALLOWED = 2e-3
"""Largest difference to the reference, as a share of the largest logit."""

COUNTS = st.lists(st.integers(1, 12), min_size=1, max_size=4)


@dataclass
class Held:
    """A sequence and the tokens it should hold."""

    sequence: Sequence
    tokens: list[int] = field(default_factory=list[int])


class Schedules(RuleBasedStateMachine):
    """Open, feed, truncate, copy a prefix, close, and steps that fail, beside lists of tokens."""

    model = "grouped"
    options: dict[str, object] = {"stages": (1, 4, 16), "histories": (16, 40), "head_rows": (1, 4)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        config, floats = MODELS[self.model].config, FLOATS[self.model]
        self.device = NumpyDevice(config, floats, context=ROWS, **self.options)  # pyright: ignore[reportArgumentType]
        embedding = rounded(floats["model.embed_tokens.weight"], "float16")
        self.engine = BmodelEngine(
            self.device, plan_nets(self.device.nets), config, embedding=embedding, context=CONTEXT
        )
        self.random = np.random.default_rng(0)
        self.held: list[Held] = []

    def chunks(self, counts: list[int], skipped: int) -> list[tuple[Held, list[int]]]:
        """Return new tokens for some sequences, as far as they fit."""
        assert self.engine.row_use is not None
        free = self.engine.row_use.total - self.engine.row_use.used
        chunks: list[tuple[Held, list[int]]] = []
        for held, wished in zip(self.held[skipped:], counts, strict=False):
            count = min(wished, free, CONTEXT - len(held.tokens))
            if count:
                chunks.append((held, self.random.integers(0, 320, count).tolist()))
                free -= count
        return chunks

    @rule()
    @precondition(lambda self: len(self.held) < 5)
    def open(self) -> None:
        self.held.append(Held(self.engine.open_sequence()))

    @rule(counts=COUNTS, skipped=st.integers(0, 3), logit_rows=st.integers(0, 3))
    @precondition(lambda self: self.held)
    def feed(self, counts: list[int], skipped: int, logit_rows: int) -> None:
        chunks = self.chunks(counts, skipped)
        found = self.engine.forward(
            [Chunk(held.sequence, new, min(logit_rows, len(new))) for held, new in chunks]
        )
        for (held, new), logits in zip(chunks, found, strict=True):
            held.tokens += new
            if len(logits):
                tokens, config = held.tokens, self.engine.config
                expected = reference_logits(config, FLOATS[self.model], tokens, np.float16)[-len(logits) :]
                error = np.abs(logits - expected).max() / np.abs(expected).max()
                assert error < SHARE_ALLOWED, f"off by {error:.1e} of the largest logit"

    @rule(counts=COUNTS, launches=st.integers(0, 5))
    @precondition(lambda self: self.held)
    def fail(self, counts: list[int], launches: int) -> None:
        self.device.fail_at = len(self.device.launches) + launches
        chunks = self.chunks(counts, 0)
        try:
            self.engine.forward([Chunk(held.sequence, new) for held, new in chunks])
        except DeviceError:
            chunks = []
        self.device.fail_at = None
        for held, new in chunks:
            held.tokens += new

    @rule(which=st.integers(0, 4), share=st.floats(0, 1))
    @precondition(lambda self: self.held)
    def truncate(self, which: int, share: float) -> None:
        held = self.held[which % len(self.held)]
        length = int(share * len(held.tokens))
        held.sequence.truncate(length)
        del held.tokens[length:]

    @rule(which=st.integers(0, 4), other=st.integers(0, 4), share=st.floats(0, 1))
    @precondition(lambda self: len(self.held) > 1)
    def copy_prefix(self, which: int, other: int, share: float) -> None:
        held, source = self.held[which % len(self.held)], self.held[other % len(self.held)]
        if held is source:
            return
        length = int(share * len(source.tokens))
        copies = self.device.counts.copies
        held.sequence.copy_prefix(source.sequence, length)
        held.tokens = source.tokens[:length]
        assert self.device.counts.copies == copies

    @rule(which=st.integers(0, 4))
    @precondition(lambda self: self.held)
    def close(self, which: int) -> None:
        self.held.pop(which % len(self.held)).sequence.close()

    @invariant()
    def every_sequence_is_as_long_as_its_tokens(self) -> None:
        assert [held.sequence.length for held in self.held] == [len(held.tokens) for held in self.held]

    def teardown(self) -> None:
        for held in self.held:
            held.sequence.close()
        assert self.engine.row_use is not None
        assert self.engine.row_use.used == 0, "all rows are given back"


class AlibiSchedules(Schedules):
    model = "alibi"
    options = {"stages": (1, 16), "histories": (40,), "layers_per_net": 2}  # noqa: RUF012


class OddSchedules(Schedules):
    """The last history is little longer than the one before it: copies come close to what a net gathers."""

    options = {"stages": (1, 8, 16), "histories": (16, 66)}  # noqa: RUF012


class ConverterSchedules(Schedules):
    options = {"stages": (1, 32), "form": "converter"}  # noqa: RUF012


SETTINGS = settings(max_examples=12, stateful_step_count=20, deadline=None)
for _schedules in (Schedules, AlibiSchedules, OddSchedules, ConverterSchedules):
    _schedules.TestCase.settings = SETTINGS

TestSchedules = Schedules.TestCase
TestAlibiSchedules = AlibiSchedules.TestCase
TestOddSchedules = OddSchedules.TestCase
TestConverterSchedules = ConverterSchedules.TestCase
