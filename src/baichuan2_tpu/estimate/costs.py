"""Add up the costs of launches to those of a step of all answers, and of a prompt.

Not here: what is shown and how (``report``, ``picture``), which launches a step makes
(``engine.compiled.forecast``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import Self

from baichuan2_tpu.engine.compiled.forecast import Forecast, Pass
from baichuan2_tpu.errors import ArtifactError
from baichuan2_tpu.manifest import HEAD_NET, MANIFEST_NAME, Manifest, NetCost, Stage

__all__ = [
    "FLOPS_PER_S",
    "PROMPT_BESIDE_ANSWERS",
    "READ_BYTES_PER_S",
    "USERS",
    "Cost",
    "Estimate",
    "Step",
    "estimate",
    "prompt_lengths",
]

READ_BYTES_PER_S = 54.0e9
"""The cycle model's own ceiling: every large load in the profile of a layer runs at 50.31 GiB/s, and the DMA
is busy for 97 % of the time. The chip's data sheet has 68.3 GB/s (LPDDR4X-4266, 128 bits wide)."""

FLOPS_PER_S = 16e12
"""Half-precision peak of the BM1684X, from its data sheet."""

USERS = (1, 4, 8, 16, 32)
"""Answers that are generated at once."""

PROMPT_BESIDE_ANSWERS = 48
"""Tokens of a prompt that rides along with answers: with 16 of them it fills a launch of 64."""

_VENDOR_PROMPT_TOKENS = 14
"""Length of the prompt that the vendor's sample is measured with."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What some launches cost together, and the least time that their bytes and operations allow."""

    launches: int = 0
    time_ms: float = 0.0
    roofline_ms: float = 0.0
    read_bytes: int = 0
    flops: int = 0

    @classmethod
    def of(cls, launches: Iterable[NetCost]) -> Self:
        """Add up launches; each is limited by itself, as it does not start before the last one ends."""
        costs = list(launches)
        return cls(
            launches=len(costs),
            time_ms=sum(cost.time_ms for cost in costs),
            roofline_ms=sum(_roofline_ms(cost) for cost in costs),
            read_bytes=sum(cost.read_bytes for cost in costs),
            flops=sum(cost.flops for cost in costs),
        )

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            launches=self.launches + other.launches,
            time_ms=self.time_ms + other.time_ms,
            roofline_ms=self.roofline_ms + other.roofline_ms,
            read_bytes=self.read_bytes + other.read_bytes,
            flops=self.flops + other.flops,
        )


@dataclass(frozen=True, slots=True)
class Step:
    """The launches for some new tokens. ``stages`` are those of the passes over the layers, in order."""

    stages: tuple[Stage, ...]
    layers: Cost
    head: Cost
    embedding: Cost

    @property
    def total(self) -> Cost:
        """All launches."""
        return self.layers + self.head + self.embedding

    def parts(self) -> dict[str, Cost]:
        """Return the costs by part; the embedding is one only where the device gathers it."""
        costs = {"layers": self.layers, "head": self.head, "embedding": self.embedding}
        return {name: cost for name, cost in costs.items() if cost.launches}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the cycle model says of a bundle.

    Rows in use are those of all sequences together, with what the step writes, padding too: up to so many of
    them the times hold, down to the next lower figure.
    """

    manifest: Manifest
    stages: Mapping[Stage, Cost]
    """One pass over the layers, by its stage."""
    answers: Mapping[tuple[int, int], Step]
    """One token for each of so many users, by users and rows in use, where there are rows for all."""
    first_tokens: Mapping[int, Step]
    """By the length of a prompt: everything up to its first token, with nothing else in memory."""
    loaded: Mapping[tuple[int, int], Step]
    """A prompt of ``PROMPT_BESIDE_ANSWERS`` tokens and one token for each user, by users and rows in use."""

    @property
    def histories(self) -> tuple[int, ...]:
        """Rows in use up to which a stage reaches, ascending."""
        return tuple(sorted({stage.history for stage in self.stages}))

    @property
    def decode(self) -> Step:
        """One token of a single conversation, with as few rows in use as the shortest stage reads."""
        return self.answers[1, self.histories[0]]

    @property
    def decode_tok_per_s(self) -> float:
        """Tokens per second of ``decode``, if nothing but the launches took time."""
        return 1000 / self.decode.total.time_ms


class _Launches:
    """The launches of a manifest: what each stage costs, and what a step of the engine adds up to."""

    def __init__(self, manifest: Manifest) -> None:
        self._has_embedding = manifest.embedding == "device"
        self._costs = {(cost.net, cost.stage): cost for cost in manifest.costs}
        self.stages = {
            stage: Cost.of(self._of(net, stage) for net in manifest.block_nets) for stage in manifest.stages
        }

    def step(self, passes: Iterable[Pass]) -> Step:
        """Add up the passes over the layers, and the launches of head and embedding that belong to them."""
        passes = list(passes)
        stages = tuple(launched.stage for launched in passes)
        heads = [rows for launched in passes for rows in launched.head_rows]
        embeddings = [stage.tokens for stage in stages if self._has_embedding]
        return Step(
            stages,
            sum((self.stages[stage] for stage in stages), Cost()),
            Cost.of(self._of(HEAD_NET, Stage(rows, 0)) for rows in heads),
            Cost.of(self._of("embedding", Stage(tokens, 0)) for tokens in embeddings),
        )

    def _of(self, net: str, stage: Stage) -> NetCost:
        """Return the cost of one launch.

        Raises: ArtifactError where the manifest has none.
        """
        cost = self._costs.get((net, stage))
        if cost is None:
            raise ArtifactError(
                f"{MANIFEST_NAME} has no cost of {net} at {stage.tokens} tokens and {stage.history} rows; "
                "compile the bundle again"
            )
        return cost


def estimate(manifest: Manifest, prompts: Sequence[int] | None = None) -> Estimate:
    """Add up what the cycle model says of a bundle, for prompts of these lengths or of the usual ones.

    Raises: ArtifactError where the manifest has no cost of a net.
    """
    launches, forecast = _Launches(manifest), Forecast(manifest)
    lengths = prompt_lengths(manifest.context) if prompts is None else prompts
    return Estimate(
        manifest,
        stages=launches.stages,
        answers={
            (users, rows): launches.step(forecast.step(users, users, held))
            for users, rows, held in _settings(manifest, 0)
        },
        first_tokens={length: launches.step(forecast.prompt(length)) for length in lengths},
        loaded={
            (users, rows): launches.step(forecast.step(users + PROMPT_BESIDE_ANSWERS, users + 1, held))
            for users, rows, held in _settings(manifest, PROMPT_BESIDE_ANSWERS)
        },
    )


def _settings(manifest: Manifest, prompt: int) -> Iterator[tuple[int, int, int]]:
    """Yield users, rows in use, and the fewest rows before a step that then needs a history of so many.

    Units: ``prompt`` counts tokens beside those of the users. Steps that do not fit are left out.
    """
    histories = sorted({stage.history for stage in manifest.stages})
    for shorter, rows in zip([0, *histories], histories, strict=False):
        for users in USERS:
            held = max(0, min(shorter, rows - users - prompt))
            if held + users + prompt <= manifest.rows:
                yield users, rows, held


def prompt_lengths(context: int) -> tuple[int, ...]:
    """Return the lengths worth showing: one token, the vendor's prompt, doubles of 64, a full context."""
    doubles = (64 << shift for shift in range(context.bit_length()))
    lengths = {1, _VENDOR_PROMPT_TOKENS, context, *doubles}
    return tuple(sorted(length for length in lengths if length <= context))


def _roofline_ms(launch: NetCost) -> float:
    return 1000 * max(launch.read_bytes / READ_BYTES_PER_S, launch.flops / FLOPS_PER_S)
