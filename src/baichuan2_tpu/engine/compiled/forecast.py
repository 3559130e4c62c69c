"""Which launches the engine will make of a bundle, known from its manifest alone, without a device.

Not here: what they take (``estimate``), making them (``block_loop``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from baichuan2_tpu.engine.compiled.net_plan import BlockStage, HeadPlan, NetPlan, TokenStage
from baichuan2_tpu.engine.compiled.rows import RowAllocator, Run
from baichuan2_tpu.engine.compiled.stage_costs import StageCosts
from baichuan2_tpu.engine.compiled.step import Step, Work
from baichuan2_tpu.manifest import HEAD_NET, Manifest, Stage

__all__ = ["Forecast", "Pass"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass over all layers, and the rows of each launch of the head behind it."""

    stage: Stage
    head_rows: tuple[int, ...]


class Forecast:
    """The steps of an engine that opens the bundle of ``manifest``."""

    def __init__(self, manifest: Manifest) -> None:
        self._plan = _plan(manifest)
        self._costs = StageCosts.from_manifest(manifest, self._plan)

    def step(self, tokens: int, outputs: int, rows: int) -> list[Pass]:
        """Return the passes for new tokens, the last ``outputs`` of which want logits.

        Units: ``rows`` are in use before, the lowest ones.
        """
        allocator = RowAllocator(self._plan.rows)
        held = Run(0, rows).rows()
        allocator.take(held, held)
        return self._passes(allocator, tokens, outputs)

    def prompt(self, tokens: int) -> list[Pass]:
        """Return the passes for a prompt in an empty memory, fed in the pieces of a generation."""
        allocator, piece = RowAllocator(self._plan.rows), self._plan.most_tokens
        counts = [min(piece, tokens - start) for start in range(0, tokens, piece)]
        passes: list[Pass] = []
        for number, count in enumerate(counts):
            passes += self._passes(allocator, count, int(number == len(counts) - 1))
        return passes

    def _passes(self, allocator: RowAllocator, tokens: int, outputs: int) -> list[Pass]:
        nothing = np.zeros(0, np.int32)
        work = Work(nothing, nothing, np.zeros(tokens, np.int32), np.zeros((outputs, 0), np.float32))
        return [
            Pass(
                Stage(launch.stage.tokens, launch.stage.history),
                self._costs.head_sizes(launch.logit_rows, launch.stage.tokens),
            )
            for launch in Step(self._plan, self._costs, allocator, [work]).launches()
        ]


def _plan(manifest: Manifest) -> NetPlan:
    """Return the plan of a manifest's nets; the numbers of its stages are not those in the bmodel."""
    model, layers = manifest.model, manifest.layers_per_net
    full, rest = divmod(model.layers, layers)
    blocks = [
        BlockStage("block_cache", number, *stage, has_own_io=True)
        for number, stage in enumerate(manifest.stages)
    ]
    heads = [TokenStage(HEAD_NET, number, rows) for number, rows in enumerate(manifest.head_rows)]
    return NetPlan(
        layers_of_net=(layers,) * full + (rest,) * bool(rest),
        hidden_size=model.hidden_size,
        kv_heads=model.kv_heads,
        head_size=model.head_size,
        rows=manifest.rows,
        dtype=manifest.dtype,
        has_history_positions=model.position == "alibi",
        stages=tuple(blocks),
        prompt=None,
        head=HeadPlan(manifest.head_output, 1, tuple(heads)),
        embeddings=(),
    )
