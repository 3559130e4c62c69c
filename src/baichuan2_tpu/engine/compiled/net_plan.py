"""Which nets of a bmodel make a model, and the stages they have.

Everything is read from the shapes of the nets. Two forms are known: ours, where ``block_cache_g`` holds some
consecutive layers and has stages for several numbers of new tokens and of history rows; and the one of
TPU-MLIR's converters, where ``block_i`` takes a prompt without history and ``block_cache_i`` one token.
Not here: what the stages cost (``stage_costs``), what a step launches (``step``), the manifest
(``open_bundle``).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from baichuan2_tpu.engine.device.base import NetInfo, StageInfo
from baichuan2_tpu.errors import ArtifactError
from baichuan2_tpu.manifest import HEAD_NET, HeadOutput

__all__ = [
    "PLAIN_INPUTS",
    "TENSORS_PER_LAYER",
    "BlockStage",
    "HeadPlan",
    "NetPlan",
    "TokenStage",
    "plan_nets",
]

PLAIN_INPUTS = 3
"""Inputs of a block in front of its history: states, positions, mask."""
TENSORS_PER_LAYER = 2
"""Keys and values."""

_EMBEDDINGS = ("embedding", "embedding_cache")
_PROMPT_BLOCK, _CACHE_BLOCK = "block", "block_cache"
_FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class TokenStage:
    """A stage of a net that takes ``tokens`` tokens, or rows of states."""

    net: str
    stage: int
    tokens: int


@dataclass(frozen=True, slots=True)
class BlockStage:
    """A stage that every block net has; net ``i`` is named ``family`` with ``_i`` behind it.

    Units: ``tokens`` new tokens; ``history`` rows, 0 for a stage that reads none.
    """

    family: str
    stage: int
    tokens: int
    history: int
    has_own_io: bool

    def net(self, index: int) -> str:
        """Return the name of a block net."""
        return f"{self.family}_{index}"


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """The net that turns rows of states into outputs. Units: ``candidates`` counts tokens."""

    output: HeadOutput
    candidates: int
    stages: tuple[TokenStage, ...]
    """Ascending by rows."""


@dataclass(frozen=True, slots=True)
class NetPlan:
    """The nets of one model and its dimensions as they were compiled.

    Units: ``rows`` of history, which all sequences share; the longest stage covers them all.
    """

    layers_of_net: tuple[int, ...]
    hidden_size: int
    kv_heads: int
    head_size: int
    rows: int
    dtype: str
    has_history_positions: bool
    """True where the nets are told the position of every row, as ALiBi needs."""
    stages: tuple[BlockStage, ...]
    """Those that read history, ascending by history and tokens."""
    prompt: BlockStage | None
    """The stage that takes only beginnings of sequences and reads no history, where there is one."""
    head: HeadPlan
    embeddings: tuple[TokenStage, ...]
    """Empty where the embedding is gathered on the host."""

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return sum(self.layers_of_net)

    @property
    def most_tokens(self) -> int:
        """New tokens of the largest stage."""
        return max(stage.tokens for stage in (*self.stages, *([self.prompt] if self.prompt else [])))

    def embedding(self, tokens: int) -> TokenStage:
        """Return the stage of the embedding that fits a block stage."""
        return next(stage for stage in self.embeddings if stage.tokens == tokens)


def plan_nets(nets: Mapping[str, NetInfo]) -> NetPlan:
    """Find the model in the nets of a bmodel.

    Raises: ArtifactError naming the net that is missing or has another form than it should.
    """
    count = sum(
        1 for _ in itertools.takewhile(lambda net: f"{_CACHE_BLOCK}_{net}" in nets, itertools.count())
    )
    if count == 0:
        raise ArtifactError(
            f"no {_CACHE_BLOCK}_0 among the nets ({', '.join(nets) or 'none'}); "
            "name a bundle made by baichuan2 compile"
        )
    stages = _block_stages(nets, _CACHE_BLOCK, count)
    prompts = _block_stages(nets, _PROMPT_BLOCK, count) if f"{_PROMPT_BLOCK}_0" in nets else []
    first = nets[f"{_CACHE_BLOCK}_0"].stages[0]
    states, history = first.inputs[0], first.inputs[-1]
    plan = NetPlan(
        layers_of_net=tuple(_layers(nets[f"{_CACHE_BLOCK}_{net}"].stages[0]) for net in range(count)),
        hidden_size=states.shape[-1],
        kv_heads=history.shape[2],
        head_size=history.shape[3],
        rows=history.shape[1],
        dtype=states.dtype,
        has_history_positions=_has_positions(first),
        stages=tuple(sorted(stages, key=lambda stage: (stage.history, stage.tokens))),
        prompt=max(prompts, key=lambda stage: stage.tokens, default=None),
        head=_head(nets, states.shape[-1]),
        embeddings=tuple(_embedding_stages(nets)),
    )
    _check_stages(plan)
    return plan


def _check_stages(plan: NetPlan) -> None:
    """Check that one token fits wherever there is a free row, and that the embedding has every stage."""
    if (1, plan.rows) not in {(stage.tokens, stage.history) for stage in plan.stages}:
        raise ArtifactError(
            f"{_CACHE_BLOCK}_0 has no stage of 1 token and {plan.rows} rows of history, or the longest "
            "history is not its first stage; compile the bundle again"
        )
    sizes = {stage.tokens for stage in (*plan.stages, *([plan.prompt] if plan.prompt else []))}
    missing = sizes - {stage.tokens for stage in plan.embeddings}
    if plan.embeddings and missing:
        raise ArtifactError(f"the embedding has no stage of {min(missing)} tokens; compile the bundle again")


def _block_stages(nets: Mapping[str, NetInfo], family: str, count: int) -> list[BlockStage]:
    """Return the stages of the first net, once every net is known to have the same."""
    first = _net(nets, f"{family}_0")
    stages = [_block_stage(first, index, family) for index in range(len(first.stages))]
    for number in range(1, count):
        other = _net(nets, f"{family}_{number}")
        for index in range(len(other.stages)):
            _block_stage(other, index, family)
        if [_form(stage) for stage in other.stages] != [_form(stage) for stage in first.stages]:
            raise ArtifactError(f"{other.name} has other shapes than {first.name}; compile the bundle again")
    return stages


def _block_stage(net: NetInfo, index: int, family: str) -> BlockStage:
    stage = net.stages[index]
    if net.is_dynamic:
        raise ArtifactError(f"{net.name} is dynamic, static nets are needed; compile the bundle again")
    if not _is_block(stage, reads_history=family == _CACHE_BLOCK):
        raise ArtifactError(
            f"{net.name}, stage {index}: takes "
            f"{', '.join(f'{tensor.dtype} {list(tensor.shape)}' for tensor in stage.inputs)}, "
            "which is not a block that this engine knows; compile the bundle again"
        )
    history = stage.inputs[-1].shape[1] if family == _CACHE_BLOCK else 0
    return BlockStage(family, index, stage.inputs[0].shape[1], history, net.has_own_io)


def _is_block(stage: StageInfo, *, reads_history: bool) -> bool:
    """Tell whether states, positions, mask, history and outputs fit each other."""
    inputs, outputs = stage.inputs, stage.outputs
    if len(inputs) < PLAIN_INPUTS or len(inputs[0].shape) != 3:
        return False
    batch, tokens, _ = inputs[0].shape
    rows = inputs[-1].shape if reads_history else (1, 0)
    past = inputs[PLAIN_INPUTS + _has_positions(stage) :]
    expected = [(1, tokens), (1, 1, tokens, rows[1] + tokens)]
    new = [tensor.shape for tensor in outputs[1:]]
    return (
        batch == 1
        and [tensor.shape for tensor in inputs[1:PLAIN_INPUTS]] == expected
        and inputs[1].dtype == "int32"
        # The vendor's nets can take states of float32 beside a history of float16.
        and all(tensor.shape == rows and tensor.dtype == past[0].dtype for tensor in past)
        and (len(new) == len(past) > 0 if reads_history else (not past and len(new) == TENSORS_PER_LAYER))
        and all(shape == (1, tokens, *shape[2:]) and len(shape) == 4 for shape in new)
        and (not reads_history or all(shape[2:] == rows[2:] for shape in new))
        and (not _has_positions(stage) or _are_positions(stage, rows[1]))
    )


def _has_positions(stage: StageInfo) -> bool:
    """Tell whether the positions of the history's rows are an input: then the number of inputs is even."""
    return (len(stage.inputs) - PLAIN_INPUTS) % TENSORS_PER_LAYER == 1


def _are_positions(stage: StageInfo, rows: int) -> bool:
    tensor = stage.inputs[PLAIN_INPUTS]
    return tensor.dtype == "int32" and math.prod(tensor.shape) == rows


def _layers(stage: StageInfo) -> int:
    return (len(stage.inputs) - PLAIN_INPUTS) // TENSORS_PER_LAYER


def _form(stage: StageInfo) -> list[tuple[str, tuple[int, ...]]]:
    """Return what all block nets have in common: the last may hold fewer layers."""
    inputs = stage.inputs[: PLAIN_INPUTS + _has_positions(stage)]
    return [(tensor.dtype, tensor.shape) for tensor in (*inputs, stage.inputs[-1], *stage.outputs[:2])]


def _embedding_stages(nets: Mapping[str, NetInfo]) -> Iterator[TokenStage]:
    for name in _EMBEDDINGS:
        for index, stage in enumerate(nets[name].stages if name in nets else ()):
            yield TokenStage(name, index, math.prod(stage.inputs[0].shape))


def _head(nets: Mapping[str, NetInfo], hidden_size: int) -> HeadPlan:
    net = _net(nets, HEAD_NET)
    outputs = [_head_output(stage, hidden_size) for stage in net.stages]
    sizes = [math.prod(stage.inputs[0].shape) // hidden_size for stage in net.stages]
    if None in outputs or len(set(outputs)) != 1 or 1 not in sizes:
        shapes = [
            [(tensor.dtype, math.prod(tensor.shape)) for tensor in stage.outputs] for stage in net.stages
        ]
        raise ArtifactError(
            f"{HEAD_NET} gives {shapes} for {sizes} rows, not logits, a token, or the best logits and their "
            "ids of each row, one row among them; compile the bundle again"
        )
    output, candidates = outputs[0] or ("logits", 0)
    stages = [TokenStage(HEAD_NET, index, rows) for index, rows in enumerate(sizes)]
    return HeadPlan(output, candidates, tuple(sorted(stages, key=lambda stage: stage.tokens)))


def _head_output(stage: StageInfo, hidden_size: int) -> tuple[HeadOutput, int] | None:
    """Return what a stage of the head gives, and of how many tokens per row; None for what is not known."""
    rows, rest = divmod(math.prod(stage.inputs[0].shape), hidden_size)
    if len(stage.inputs) != 1 or rest or not rows:
        return None
    outputs = [(tensor.dtype, *divmod(math.prod(tensor.shape), rows)) for tensor in stage.outputs]
    match outputs:
        case [("int32", 1, 0)]:
            return "token", 1
        case [(dtype, count, 0)] if dtype in _FLOATS and count > 1:
            return "logits", count
        case [(dtype, count, 0), ("int32", same, 0)] if dtype in _FLOATS and count == same:
            return "sample", count
        case _:
            return None


def _net(nets: Mapping[str, NetInfo], name: str) -> NetInfo:
    if name not in nets:
        raise ArtifactError(f"the bmodel has no net {name}; compile the bundle again")
    return nets[name]
