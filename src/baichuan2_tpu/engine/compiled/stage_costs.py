"""What the stages of compiled nets cost, and the cheapest way to cut tokens into them.

The costs are those of the compiler's cycle model where the bundle's manifest has them; else a formula, fitted
to that model's figures for a layer of Baichuan2-7B at 4 bits. Only their proportions matter.
Not here: which nets there are (``net_plan``), which stages fit where the free rows lie (``step``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache

from typing_extensions import Self

from baichuan2_tpu.engine.compiled.net_plan import TENSORS_PER_LAYER, BlockStage, NetPlan
from baichuan2_tpu.manifest import HEAD_NET, Manifest, Stage

__all__ = ["StageCosts", "cut_tokens"]

_COPY_MS = 0.3
"""A copy on the device: a system call, a look-up and a launch in libsophon. Inferred from the vendor's
published times (its Baichuan2 sample, 64 copies per token), not measured."""

_EXACT_MULTIPLE = 4
"""Tokens beyond so many times the largest stage go into the stage with the most tokens per millisecond."""


class StageCosts:
    """The costs of a plan's stages.

    Units: milliseconds of the first block net. ``blocks`` are its costs by stage, ``heads`` those of the head
    by rows, as far as they are known.
    """

    def __init__(
        self,
        plan: NetPlan,
        blocks: Mapping[Stage, float] | None = None,
        heads: Mapping[int, float] | None = None,
    ) -> None:
        layers = plan.layers_of_net[0]
        known, known_heads = blocks or {}, heads or {}
        self._stages: dict[BlockStage, float] = {
            stage: known.get(
                Stage(stage.tokens, stage.history), layers * _formula_ms(stage.tokens, stage.history)
            )
            for stage in (*plan.stages, *([plan.prompt] if plan.prompt else []))
        }
        self._histories = sorted({stage.history for stage in plan.stages})
        self._copies_ms = layers * TENSORS_PER_LAYER * _COPY_MS
        self._cheapest = {history: self._cheapest_stages(history) for history in self._histories}
        self._cuts = {
            history: _Cuts(tuple((size, self._stages[stage]) for size, stage in stages.items()))
            for history, stages in self._cheapest.items()
        }
        # Without figures all cost the same, which is nearly so.
        self._heads = {stage.tokens: known_heads.get(stage.tokens, 1.0) for stage in plan.head.stages}

    @classmethod
    def from_manifest(cls, manifest: Manifest, plan: NetPlan) -> Self:
        """Return the costs that a bundle's manifest has of its first block net and of its head."""
        block, head = (
            {cost.stage: cost.time_ms for cost in manifest.costs if cost.net == net}
            for net in (manifest.block_nets[0], HEAD_NET)
        )
        return cls(plan, block, {stage.tokens: time_ms for stage, time_ms in head.items()})

    def of(self, stage: BlockStage) -> float:
        """Return what a launch costs."""
        return self._stages[stage]

    def copies(self, runs: int) -> float:
        """Return what it costs to copy the keys and values of new tokens into so many runs of rows."""
        return runs * self._copies_ms

    def stages(self, rows: int) -> Mapping[int, BlockStage]:
        """Return by new tokens the cheapest stage whose history covers the first ``rows`` rows."""
        return self._cheapest[self._level(rows)]

    def cheapest(self, tokens: int, rows: int) -> float:
        """Return the least cost of ``tokens`` new tokens that see only the first ``rows`` rows."""
        return self._cuts[self._level(rows)].cost(tokens)

    def first_size(self, tokens: int, rows: int) -> int:
        """Return the new tokens of the largest stage in that cheapest cut."""
        return self._cuts[self._level(rows)].pieces(tokens)[0]

    def head_sizes(self, rows: int, tokens: int) -> tuple[int, ...]:
        """Return the rows of each launch of the head, for ``rows`` of a launch of ``tokens`` tokens."""
        return cut_tokens(rows, {size: cost for size, cost in self._heads.items() if size <= tokens})

    def _level(self, rows: int) -> int:
        return next(history for history in self._histories if history >= rows)

    def _cheapest_stages(self, rows: int) -> Mapping[int, BlockStage]:
        fitting = sorted(
            (stage for stage in self._stages if stage.history >= rows), key=self._stages.__getitem__
        )
        return {stage.tokens: stage for stage in reversed(fitting)}


def cut_tokens(tokens: int, costs: Mapping[int, float]) -> tuple[int, ...]:
    """Return the sizes of the stages to launch for ``tokens`` new tokens, at the least cost.

    Units: ``costs`` by the new tokens of each stage. The largest come first; all together may be more than
    ``tokens``, by less than the last.
    """
    return _cuts_of(tuple(sorted(costs.items()))).pieces(tokens)


@lru_cache(maxsize=64)
def _cuts_of(costs: tuple[tuple[int, float], ...]) -> _Cuts:
    """Return the cuts into these stages; what was weighed once is kept."""
    return _Cuts(costs)


class _Cuts:
    """The cheapest cut of every number of tokens, weighed the first time that it is asked for.

    ``costs`` are sizes and what each costs. Of cuts of equal cost, that with the fewest launches is taken.
    """

    def __init__(self, costs: tuple[tuple[int, float], ...]) -> None:
        self._costs = costs
        self._largest = max(size for size, _ in costs)
        self._steady, self._steady_cost = min(costs, key=lambda stage: stage[1] / stage[0])
        self._least: list[tuple[float, int]] = [(0.0, 0)]
        self._last = [0]

    def cost(self, tokens: int) -> float:
        """Return the least cost."""
        steady, rest = self._split(tokens)
        return steady * self._steady_cost + self._least[rest][0]

    def pieces(self, tokens: int) -> tuple[int, ...]:
        """Return the sizes, the largest first."""
        steady, rest = self._split(tokens)
        pieces = [self._steady] * steady
        while rest > 0:
            pieces.append(self._last[rest])
            rest -= pieces[-1]
        return tuple(sorted(pieces, reverse=True))

    def _split(self, tokens: int) -> tuple[int, int]:
        """Return how many launches of the steady stage come first, and the tokens that are weighed."""
        steady = max(0, tokens - _EXACT_MULTIPLE * self._largest) // self._steady
        rest = tokens - steady * self._steady
        for count in range(len(self._least), rest + 1):
            best, size = min(self._options(count))
            self._least.append(best)
            self._last.append(size)
        return steady, rest

    def _options(self, count: int) -> Iterator[tuple[tuple[float, int], int]]:
        for size, cost in self._costs:
            spent, launches = self._least[max(0, count - size)]
            yield (round(spent + cost, 9), launches + 1), size


def _formula_ms(tokens: int, history: int) -> float:
    """Return about what one layer takes; 2 to 8 tokens suit the compiler's tiling of attention badly."""
    read_or_multiply_ms = max(2.1 + 0.01 * tokens, 0.036 * tokens)
    badly_tiled_ms = 0.0045 * history / tokens if 1 < tokens < 16 else 0.0
    return read_or_multiply_ms + 0.0003 * history + badly_tiled_ms
