"""Run a launch: new tokens through one block net after the other, and the last of them through the head.

Positions and mask are made once for a launch and read by every net. The mask alone tells sequences apart.
What is masked still takes part in the arithmetic, with weight zero, so all of it must be finite numbers.
Not here: which launches (``step``), whose rows the history holds (``rows``).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.compiled.history import History
from baichuan2_tpu.engine.compiled.net_plan import PLAIN_INPUTS, BlockStage, NetPlan, TokenStage
from baichuan2_tpu.engine.compiled.stage_costs import StageCosts
from baichuan2_tpu.engine.compiled.step import Launch
from baichuan2_tpu.engine.device.base import DTYPES, Buffer, Device

__all__ = ["BlockLoop", "to_float32"]

_MASKED = {"float16": np.float16(-6e4), "bfloat16": np.uint16(0xC76A), "float32": np.float32(-6e4)}
"""What is added to the scores of hidden rows. Other people's rows lie in the same memory, so it is as low as
float16 goes with room for scores of -5500 before the sum overflows: a tile of infinities alone would be NaN.
A hidden row shows only where its score is above the best visible one by about 6e4. On the simulator the bits
are those of the vendor's -1e4."""


@dataclass(frozen=True, slots=True)
class _NetIo:
    """What one block net is launched with; ``new`` are its own keys and values of new tokens, in turn."""

    inputs: tuple[Buffer, ...]
    states: Buffer
    new: tuple[Buffer, ...]


class BlockLoop:
    """The blocks, the embedding and the head of one model on one device.

    ``embedding`` are the rows of the embedding on the host, in the plan's dtype; None where the device has
    it. ``on_net_time`` is told once how many seconds the first launch of a block net took.
    Shapes: embedding (V, E).
    """

    def __init__(
        self,
        device: Device,
        plan: NetPlan,
        costs: StageCosts,
        embedding: NDArray[Any] | None,
        *,
        on_net_time: Callable[[float], None] | None = None,
    ) -> None:
        self._device = device
        self._plan = plan
        self._costs = costs
        self._embedding = embedding
        self._on_net_time = on_net_time
        self.history = History(device, _history_tensors(device, plan))
        self._io: dict[BlockStage, list[_NetIo]] = {}
        for stage in (*plan.stages, *([plan.prompt] if plan.prompt else [])):
            if not stage.has_own_io:  # memory of our own is allocated at once, so that it is there later
                self._io[stage] = self._shared_io(stage)
        self._ids = {stage.tokens: device.allocate("int32", (1, stage.tokens)) for stage in plan.embeddings}
        self._head_outputs = {
            stage.tokens: [
                device.allocate(tensor.dtype, tensor.shape)
                for tensor in device.nets[stage.net].stages[stage.stage].outputs
            ]
            for stage in plan.head.stages
        }

    def run(self, launch: Launch) -> list[NDArray[Any]] | None:
        """Compute a launch; return the outputs of the head for its last rows, floats in float32.

        Shapes: each output (logit_rows, …). None where the states of any token are no numbers: then every row
        that was written may hold such.
        Side effect: the rows of the launch are filled.
        """
        nets = self._nets(launch.stage)
        self._upload(nets[0], launch)
        first = 0
        for number, io in enumerate(nets):
            self._run_net(number, launch, io, first)
            first += len(io.new)
        outputs = self._head(nets[-1].states, launch)
        return outputs if np.isfinite(self.states(launch)).all() else None

    def states(self, launch: Launch) -> NDArray[np.float32]:
        """Return the states behind the last layer of the launch that ran last. Shapes: (count, E)."""
        buffer = self._nets(launch.stage)[-1].states
        rows = self._device.view(buffer, 0, (launch.count, self._plan.hidden_size))
        return to_float32(rows, self._device.download(rows))

    def _nets(self, stage: BlockStage) -> list[_NetIo]:
        if stage not in self._io:
            self._io[stage] = self._own_io(stage)
        return self._io[stage]

    def _run_net(self, number: int, launch: Launch, io: _NetIo, first: int) -> None:
        """Launch a net whose keys and values belong into the history's tensors from ``first`` on."""
        tensors = self.history.tensors[first : first + len(io.new)]
        new = io.new
        if launch.is_in_place:
            new = tuple(self.history.view(tensor, launch.runs[0]) for tensor in tensors)
        start_s = time.perf_counter()
        self._device.launch(launch.stage.net(number), launch.stage.stage, io.inputs, [io.states, *new])
        if self._on_net_time is not None:
            self._device.wait()
            self._on_net_time(time.perf_counter() - start_s)
            self._on_net_time = None
        if not launch.is_in_place:
            for tensor, source in zip(tensors, new, strict=True):
                self._copy(launch, tensor, source)

    def _copy(self, launch: Launch, tensor: Buffer, source: Buffer) -> None:
        start = launch.kept_from
        for run in launch.runs:
            self.history.copy(tensor, run, source, start)
            start += run.count

    def _head(self, states: Buffer, launch: Launch) -> list[NDArray[Any]]:
        """Run the head for the last rows of a launch, in as few launches as cost least."""
        start = launch.count - launch.logit_rows
        pieces: list[list[NDArray[Any]]] = []
        for size in self._costs.head_sizes(launch.logit_rows, launch.stage.tokens):
            stage = next(stage for stage in self._plan.head.stages if stage.tokens == size)
            count = min(size, launch.count - start)
            # Where the stage takes more rows than are left, rows before them are computed once more.
            first = min(start, launch.stage.tokens - size)
            pieces.append(self._head_rows(stage, states, first, (start - first, count)))
            start += count
        return [np.concatenate(outputs) for outputs in zip(*pieces, strict=True)]

    def _head_rows(
        self, stage: TokenStage, states: Buffer, first: int, kept: tuple[int, int]
    ) -> list[NDArray[Any]]:
        """Run a stage of the head on the states from row ``first`` on.

        Return the outputs of ``kept`` rows: the first of them, counted from ``first``, and their number.
        """
        device, (skipped, count) = self._device, kept
        shape = device.nets[stage.net].stages[stage.stage].inputs[0].shape
        source = device.view(states, first * self._plan.hidden_size, shape)
        outputs = self._head_outputs[stage.tokens]
        device.launch(stage.net, stage.stage, [source], outputs)
        values: list[NDArray[Any]] = []
        for output in outputs:
            width = output.nbytes // DTYPES[output.dtype].itemsize // stage.tokens
            rows = device.view(output, skipped * width, (count, width))
            values.append(to_float32(rows, device.download(rows)))
        return values

    def _upload(self, io: _NetIo, launch: Launch) -> None:
        stage = launch.stage
        self._embed(io.inputs[0], stage, launch.tokens)
        positions = np.zeros((1, stage.tokens), np.int32)  # padding stays at 0, which every table has
        positions[0, : launch.count] = launch.positions
        self._device.upload(io.inputs[1], positions)
        self._device.upload(io.inputs[2], _mask(launch, io.inputs[2].dtype))
        if self._plan.has_history_positions and stage.history:
            buffer = io.inputs[PLAIN_INPUTS]
            self._device.upload(buffer, launch.history_positions.reshape(buffer.shape))

    def _embed(self, states: Buffer, stage: BlockStage, tokens: NDArray[np.int32]) -> None:
        if self._embedding is not None:
            rows = np.zeros(states.shape, DTYPES[states.dtype])
            rows[0, : len(tokens)] = self._embedding[tokens]
            self._device.upload(states, rows)
            return
        ids = np.zeros((1, stage.tokens), np.int32)
        ids[0, : len(tokens)] = tokens
        self._device.upload(self._ids[stage.tokens], ids)
        source = self._plan.embedding(stage.tokens)
        self._device.launch(source.net, source.stage, [self._ids[stage.tokens]], [states])

    def _own_io(self, stage: BlockStage) -> list[_NetIo]:
        """Use the nets' own memory; positions and mask are those of the first net for all."""
        device, index = self._device, stage.stage
        plain = PLAIN_INPUTS + self._plan.has_history_positions
        shared = [device.input(stage.net(0), number, index) for number in range(plain)]
        nets: list[_NetIo] = []
        for number, layers in enumerate(self._plan.layers_of_net):
            net = stage.net(number)
            history = [device.input(net, plain + tensor, index) for tensor in range(2 * layers)]
            states, *new = [device.output(net, tensor, index) for tensor in range(1 + 2 * layers)]
            first = nets[-1].states if nets else shared[0]
            nets.append(_NetIo((first, *shared[1:], *history), states, tuple(new)))
        return nets

    def _shared_io(self, stage: BlockStage) -> list[_NetIo]:
        """Allocate one memory for all nets, which take states from where they put them."""
        shapes = self._device.nets[stage.net(0)].stages[stage.stage]
        plain = PLAIN_INPUTS + (self._plan.has_history_positions and stage.history > 0)
        shared = [self._device.allocate(tensor.dtype, tensor.shape) for tensor in shapes.inputs[:plain]]
        new = tuple(self._device.allocate(tensor.dtype, tensor.shape) for tensor in shapes.outputs[1:])
        nets: list[_NetIo] = []
        first = 0
        for layers in self._plan.layers_of_net:
            tensors = self.history.tensors[first : first + 2 * layers] if stage.history else ()
            nets.append(_NetIo((*shared, *tensors), shared[0], new[: 2 * layers]))
            first += 2 * layers
        return nets


def _mask(launch: Launch, dtype: str) -> NDArray[Any]:
    """Hide what no token may see. Shapes: (1, 1, T, S + T)."""
    stage, masked = launch.stage, _MASKED[dtype]
    mask = np.full((stage.tokens, stage.history + stage.tokens), masked)
    for part in launch.parts:
        row = np.full(stage.history, masked)
        if stage.history:
            row[part.visible] = 0
        mask[part.places, : stage.history] = row
        for number, place in enumerate(part.places):
            mask[place, stage.history + part.places[: number + 1]] = 0
    padding = np.arange(launch.count, stage.tokens)
    mask[padding, stage.history + padding] = 0  # a row that sees nothing at all would be no number
    return mask[None, None]


def _history_tensors(device: Device, plan: NetPlan) -> list[Buffer]:
    """Return keys and values of every layer: what the nets read themselves, else memory of our own."""
    stage = plan.stages[-1]
    tensors: list[Buffer] = []
    for number, layers in enumerate(plan.layers_of_net):
        net = stage.net(number)
        shapes = device.nets[net].stages[stage.stage].inputs
        for index in range(len(shapes) - 2 * layers, len(shapes)):
            if stage.has_own_io:
                tensors.append(device.input(net, index, stage.stage))
            else:
                tensors.append(device.allocate(shapes[index].dtype, shapes[index].shape))
    return tensors


def to_float32(buffer: Buffer, values: NDArray[Any]) -> NDArray[Any]:
    """Return floats of a buffer in float32, and integers as they are."""
    if buffer.dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values if buffer.dtype == "int32" else values.astype(np.float32)
