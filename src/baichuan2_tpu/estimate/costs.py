"""Add up the costs of launches to those of a token and of a prompt.

Not here: what is shown and how (``report``, ``picture``), which stages a prompt uses (``engine.pieces``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from typing_extensions import Self

from baichuan2_tpu.engine.compiled.stage_costs import cut_tokens
from baichuan2_tpu.errors import ArtifactError
from baichuan2_tpu.manifest import MANIFEST_NAME, Manifest, NetCost

__all__ = ["FLOPS_PER_S", "READ_BYTES_PER_S", "Cost", "Estimate", "Step", "estimate", "prompt_lengths"]

READ_BYTES_PER_S = 2.0**36
"""The cycle model's own limit: bytes moved, divided by time and by the "DDR BW USAGE" of its profile, for
every net. The chip's data sheet has 68.3 GB/s (LPDDR4X-4266, 128 bits wide)."""

FLOPS_PER_S = 16e12
"""Half-precision peak of the BM1684X, from its data sheet."""

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
        each = list(launches)
        return cls(
            launches=len(each),
            time_ms=sum(one.time_ms for one in each),
            roofline_ms=sum(_roofline_ms(one) for one in each),
            read_bytes=sum(one.read_bytes for one in each),
            flops=sum(one.flops for one in each),
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
    """The launches that lead to one token. Units: ``pieces`` are the tokens of each pass over the layers."""

    pieces: tuple[int, ...]
    layers: Cost
    head: Cost
    embedding: Cost

    @property
    def total(self) -> Cost:
        """All launches."""
        return self.layers + self.head + self.embedding

    def parts(self) -> dict[str, Cost]:
        """Return the costs by part; the embedding is one only where the device gathers it."""
        found = {"layers": self.layers, "head": self.head, "embedding": self.embedding}
        return {name: cost for name, cost in found.items() if cost.launches}


@dataclass(frozen=True, slots=True)
class Estimate:
    """What the cycle model says of a bundle."""

    manifest: Manifest
    stages: Mapping[int, Step]
    """By the new tokens of a stage: one pass over the layers with it, and the head."""
    first_tokens: Mapping[int, Step]
    """By the length of a prompt: everything up to its first token."""

    @property
    def decode(self) -> Step:
        """One token after another."""
        return self.stages[1]

    @property
    def decode_tok_per_s(self) -> float:
        """Tokens a second, if nothing but the launches took time."""
        return 1000 / self.decode.total.time_ms


@dataclass(frozen=True, slots=True)
class _Launches:
    """The launches of a manifest, by net and new tokens."""

    manifest: Manifest
    costs: Mapping[tuple[str, int], NetCost]

    def step(self, pieces: tuple[int, ...]) -> Step:
        """Return the cost of running these pieces, and the head for the last row."""
        layers = range(self.manifest.model.layers)
        has_embedding = self.manifest.embedding == "device"
        return Step(
            pieces,
            Cost.of(self.of(f"block_cache_{layer}", tokens) for tokens in pieces for layer in layers),
            Cost.of([self.of("lm_head", 1)]),
            Cost.of(self.of("embedding", tokens) for tokens in pieces if has_embedding),
        )

    def of(self, net: str, tokens: int) -> NetCost:
        """Return the cost of one launch.

        Raises: ArtifactError where the manifest has none.
        """
        found = self.costs.get((net, tokens))
        if found is None:
            raise ArtifactError(
                f"{MANIFEST_NAME} has no cost of {net} at {tokens} tokens; compile the bundle again"
            )
        return found


def estimate(manifest: Manifest, prompts: Sequence[int] | None = None) -> Estimate:
    """Add up what the cycle model says of a bundle, for prompts of these lengths or of the usual ones.

    Raises: ArtifactError where the manifest has no cost of a net.
    """
    launches = _Launches(manifest, {(cost.net, cost.tokens): cost for cost in manifest.costs})
    stages = (1, *manifest.prefill)
    lengths = prompt_lengths(manifest.context) if prompts is None else prompts
    layer_ms = {tokens: launches.of("block_cache_0", tokens).time_ms for tokens in stages}
    return Estimate(
        manifest,
        stages={tokens: launches.step((tokens,)) for tokens in stages},
        first_tokens={length: launches.step(cut_tokens(length, layer_ms)) for length in lengths},
    )


def prompt_lengths(context: int) -> tuple[int, ...]:
    """Return the lengths worth showing: one token, the vendor's prompt, doubles of 64, a full context."""
    doubles = (64 << shift for shift in range(context.bit_length()))
    lengths = {1, _VENDOR_PROMPT_TOKENS, context, *doubles}
    return tuple(sorted(length for length in lengths if length <= context))


def _roofline_ms(launch: NetCost) -> float:
    return 1000 * max(launch.read_bytes / READ_BYTES_PER_S, launch.flops / FLOPS_PER_S)
