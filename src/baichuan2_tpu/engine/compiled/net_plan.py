"""Which nets of a bmodel make a model, and which of them to launch for a run of new tokens.

Everything is read from the nets themselves. Two forms are known: ours, where ``block_cache_i`` has a stage
for every number of new tokens, each with the whole history; and the one of TPU-MLIR's converters, where
``block_i`` takes a whole prompt without history and ``block_cache_i`` one token. The estimate cuts tokens
into launches by the same rule.
Not here: launching (``engine``), the manifest (``open_bundle``), what launches take (``estimate``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from baichuan2_tpu.engine.device.base import NetInfo, StageInfo
from baichuan2_tpu.errors import ArtifactError
from baichuan2_tpu.manifest import HeadOutput

__all__ = [
    "BlockStage",
    "HeadPlan",
    "NetPlan",
    "Piece",
    "TokenStage",
    "cut_tokens",
    "launch_cost",
    "plan_nets",
]

_HEAD = "lm_head"
_EMBEDDINGS = ("embedding", "embedding_cache")
_PROMPT_BLOCK, _CACHE_BLOCK = "block", "block_cache"
_PROMPT_INPUTS, _CACHE_INPUTS = 3, 5  # states, positions, mask; and the history's keys and values
_FLOATS = ("float32", "float16", "bfloat16")

_LAUNCH_TOKENS = 64
"""A launch reads every weight, in about the time that this many tokens take to multiply."""


@dataclass(frozen=True, slots=True)
class TokenStage:
    """A stage of a net that takes ``tokens`` tokens."""

    net: str
    stage: int
    tokens: int


@dataclass(frozen=True, slots=True)
class BlockStage:
    """A stage that every layer's net has; layer ``i`` is named ``family`` with ``_i`` behind it."""

    family: str
    stage: int
    tokens: int
    reads_history: bool
    """False for a stage that takes only the first tokens of a sequence."""
    has_own_io: bool

    def net(self, layer: int) -> str:
        """Return the name of a layer's net."""
        return f"{self.family}_{layer}"


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """The net that turns a row of states into an output. Units: ``candidates`` counts tokens."""

    net: str
    output: HeadOutput
    candidates: int


@dataclass(frozen=True, slots=True)
class Piece:
    """``count`` new tokens that one stage takes; it computes ``stage.tokens`` rows, the last ones padding."""

    stage: BlockStage
    count: int


@dataclass(frozen=True, slots=True)
class NetPlan:
    """The nets of one model and its dimensions as they were compiled."""

    layers: int
    hidden_size: int
    kv_heads: int
    head_size: int
    context: int
    dtype: str
    stages: tuple[BlockStage, ...]
    """Ascending by tokens."""
    head: HeadPlan
    embeddings: tuple[TokenStage, ...]
    """Empty where the embedding is gathered on the host."""

    def start(self, length: int, count: int) -> int:
        """Return from which token on to compute, for ``count`` new ones behind ``length`` held ones.

        It is ``length``, or 0 where going over everything again takes less time: behind held tokens the
        vendor's nets take one at a time, and nine of them take longer than the prompt's net does for all.
        """
        if all(stage.reads_history for stage in self.stages):
            return length
        return 0 if self._cost(0, length + count) < self._cost(length, count) else length

    def _cost(self, length: int, count: int) -> int:
        return sum(launch_cost(piece.stage.tokens) for piece in self.cut(length, count))

    def cut(self, length: int, count: int) -> Iterator[Piece]:
        """Yield the pieces of ``count`` new tokens behind ``length`` held ones; only the last is padded."""
        usable = {stage.tokens: stage for stage in self.stages if stage.reads_history}
        if length == 0:
            usable |= {stage.tokens: stage for stage in self.stages if not stage.reads_history}
        for size in cut_tokens(count, sorted(usable)):
            piece = Piece(usable[size], min(size, count))
            yield piece
            count -= piece.count
            if not piece.stage.reads_history:
                if count:
                    yield from self.cut(piece.count, count)
                return

    def embedding(self, tokens: int) -> TokenStage:
        """Return the stage of the embedding that fits a block stage."""
        return next(stage for stage in self.embeddings if stage.tokens == tokens)


def plan_nets(nets: Mapping[str, NetInfo]) -> NetPlan:
    """Find the model in the nets of a bmodel.

    Raises: ArtifactError naming the net that is missing or has another form than it should.
    """
    layers = sum(
        1 for _ in itertools.takewhile(lambda one: f"{_CACHE_BLOCK}_{one}" in nets, itertools.count())
    )
    if layers == 0:
        raise ArtifactError(
            f"no {_CACHE_BLOCK}_0 among the nets ({', '.join(nets) or 'none'}); "
            "name a bundle made by baichuan2 compile"
        )
    families = [_CACHE_BLOCK] + [_PROMPT_BLOCK] * (f"{_PROMPT_BLOCK}_0" in nets)
    stages = [stage for family in families for stage in _block_stages(nets, family, layers)]
    history = nets[f"{_CACHE_BLOCK}_0"].stages[0].inputs[3]
    _, context, kv_heads, head_size = history.shape
    states = nets[f"{_CACHE_BLOCK}_0"].stages[0].inputs[0]
    embeddings = tuple(_embedding_stages(nets))
    plan = NetPlan(
        layers=layers,
        hidden_size=states.shape[-1],
        kv_heads=kv_heads,
        head_size=head_size,
        context=context,
        dtype=states.dtype,
        stages=tuple(sorted(stages, key=lambda stage: stage.tokens)),
        head=_head(nets, states.shape[-1]),
        embeddings=embeddings,
    )
    missing = {stage.tokens for stage in stages} - {stage.tokens for stage in embeddings}
    if embeddings and missing:
        raise ArtifactError(f"the embedding has no stage of {min(missing)} tokens; compile the bundle again")
    return plan


def _block_stages(nets: Mapping[str, NetInfo], family: str, layers: int) -> Iterator[BlockStage]:
    """Yield the stages of the first layer's net, once every layer is known to have the same."""
    first = _net(nets, f"{family}_0")
    for layer in range(1, layers):
        other = _net(nets, f"{family}_{layer}")
        if [_form(stage) for stage in other.stages] != [_form(stage) for stage in first.stages]:
            raise ArtifactError(f"{other.name} has other shapes than {first.name}; compile the bundle again")
    if first.is_dynamic:
        raise ArtifactError(f"{first.name} is dynamic, static nets are needed; compile the bundle again")
    for index, stage in enumerate(first.stages):
        reads_history = family == _CACHE_BLOCK
        wanted = _CACHE_INPUTS if reads_history else _PROMPT_INPUTS
        if (len(stage.inputs), len(stage.outputs)) != (wanted, 3) or not _is_block(stage, reads_history):
            raise ArtifactError(
                f"{first.name}, stage {index}: takes {[list(one.shape) for one in stage.inputs]}, "
                "which is no block that this engine knows; compile the bundle again"
            )
        yield BlockStage(family, index, stage.inputs[0].shape[1], reads_history, first.has_own_io)


def _is_block(stage: StageInfo, reads_history: bool) -> bool:
    """Tell whether states, positions, mask and history fit each other."""
    batch, tokens, _ = stage.inputs[0].shape
    history = stage.inputs[3].shape[1] if reads_history else 0
    wanted = [(1, tokens), (1, 1, tokens, history + tokens)]
    found = [one.shape for one in stage.inputs[1:3]]
    return batch == 1 and found == wanted and stage.inputs[1].dtype == "int32"


def _form(stage: StageInfo) -> list[tuple[str, tuple[int, ...]]]:
    return [(one.dtype, one.shape) for one in (*stage.inputs, *stage.outputs)]


def _embedding_stages(nets: Mapping[str, NetInfo]) -> Iterator[TokenStage]:
    for name in _EMBEDDINGS:
        for index, stage in enumerate(nets[name].stages if name in nets else ()):
            yield TokenStage(name, index, math.prod(stage.inputs[0].shape))


def _head(nets: Mapping[str, NetInfo], hidden_size: int) -> HeadPlan:
    stage = _net(nets, _HEAD).stages[0]
    outputs = [(one.dtype, math.prod(one.shape)) for one in stage.outputs]
    if len(stage.inputs) == 1 and math.prod(stage.inputs[0].shape) == hidden_size:
        match outputs:
            case [("int32", 1)]:
                return HeadPlan(_HEAD, "token", 1)
            case [(dtype, count)] if dtype in _FLOATS and count > 1:
                return HeadPlan(_HEAD, "logits", count)
            case [(dtype, count), ("int32", same)] if dtype in _FLOATS and count == same:
                return HeadPlan(_HEAD, "sample", count)
            case _:
                pass
    raise ArtifactError(
        f"{_HEAD} gives {outputs}, not logits, a token, or the best logits and their ids; "
        "compile the bundle again"
    )


def _net(nets: Mapping[str, NetInfo], name: str) -> NetInfo:
    if name not in nets:
        raise ArtifactError(f"the bmodel has no net {name}; compile the bundle again")
    return nets[name]


def launch_cost(tokens: int) -> int:
    """Return what a launch of a stage takes, in the time that one token takes to multiply."""
    return tokens + _LAUNCH_TOKENS


def cut_tokens(tokens: int, stages: Sequence[int]) -> tuple[int, ...]:
    """Return the stages to launch, in order, for ``tokens`` new tokens; the last may exceed what is left.

    Units: ``stages`` are the tokens of each compiled stage, ascending. Every cut into the largest that fit,
    ended at any point by one that covers the rest, is weighed; the one that takes least time is taken.
    """
    pieces: list[int] = []
    rest, spent = tokens, 0
    least, kept, last = -1, 0, 0
    while True:
        covering = next((stage for stage in stages if stage >= rest), None)
        if covering is not None:
            total = spent + launch_cost(covering)
            if least < 0 or total < least:
                least, kept, last = total, len(pieces), covering
        fitting = [stage for stage in stages if stage < rest]
        if covering == rest or not fitting:
            return (*pieces[:kept], last)
        pieces.append(fitting[-1])
        rest -= fitting[-1]
        spent += launch_cost(fitting[-1])
