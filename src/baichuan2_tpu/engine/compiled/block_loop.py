"""Run new tokens through the compiled blocks of a model, layer after layer, and rows through its head.

Positions and mask are made once for a piece and read by every layer. A piece that fills its stage writes keys
and values where the history continues; of a padded one only the valid rows are copied there. What is masked
still takes part in the arithmetic, with weight zero, so all of it must be finite numbers.
Not here: which pieces (``net_plan``), whose rows the history holds (``bmodel``, ``kv_rows``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.compiled.kv_rows import KvRows
from baichuan2_tpu.engine.compiled.net_plan import BlockStage, NetPlan, Piece
from baichuan2_tpu.engine.device.base import DTYPES, Buffer, Device, TensorInfo

__all__ = ["BlockLoop", "widened"]

_MASKED = {"float16": np.float16(-1e4), "bfloat16": np.uint16(0xC61C), "float32": np.float32(-1e4)}
"""Far below every score, and nearest to -1e4 in each dtype; it is what the vendor's samples use."""


@dataclass(frozen=True, slots=True)
class _LayerIo:
    """What one layer's net is launched with. A full piece puts its keys and values elsewhere."""

    inputs: tuple[Buffer, ...]
    states: Buffer
    keys: Buffer
    values: Buffer


class BlockLoop:
    """The blocks, the embedding and the head of one model on one device.

    ``embedding`` are the rows of the embedding on the host, in the plan's dtype; None where the device has
    it.
    Shapes: embedding (V, E).
    """

    def __init__(self, device: Device, plan: NetPlan, embedding: NDArray[Any] | None) -> None:
        self._device = device
        self._plan = plan
        self._embedding = embedding
        self.rows = KvRows(device, _history(device, plan))
        self._stages = {stage: self._stage_io(stage) for stage in plan.stages}
        self._ids = {one.tokens: device.allocate("int32", (1, one.tokens)) for one in plan.embeddings}
        head = device.nets[plan.head.net].stages[0]
        self._head_input = head.inputs[0]
        self._head_outputs = [device.allocate(one.dtype, one.shape) for one in head.outputs]

    def run(self, piece: Piece, tokens: NDArray[np.int32], length: int) -> Buffer:
        """Append the tokens of a piece behind ``length`` held ones; return the states after the last layer.

        Shapes: tokens (count,) → (1, T, E), of which the first count rows are valid.
        Side effect: rows ``length`` … ``length + count - 1`` of the history are filled.
        """
        stage, layers = piece.stage, self._stages[piece.stage]
        self._embed(layers[0].inputs[0], stage, tokens)
        positions = np.zeros((1, stage.tokens), np.int32)  # padding stays at 0, which every table has
        positions[0, : piece.count] = np.arange(length, length + piece.count)
        self._device.upload(layers[0].inputs[1], positions)
        self._device.upload(layers[0].inputs[2], self._mask(stage, length, layers[0].inputs[2].dtype))
        for layer, io in enumerate(layers):
            self._run_layer(layer, piece, io, length)
        return layers[-1].states

    def head(self, states: Buffer, row: int) -> list[NDArray[Any]]:
        """Return the outputs of the head for one row of states, floats in float32."""
        hidden = self._plan.hidden_size
        source = self._device.view(states, row * hidden, self._head_input.shape)
        self._device.launch(self._plan.head.net, 0, [source], self._head_outputs)
        return [widened(one, self._device.download(one)) for one in self._head_outputs]

    def _run_layer(self, layer: int, piece: Piece, io: _LayerIo, length: int) -> None:
        keys, values = (
            self.rows.rows(one, length, piece.count) for one in self.rows.buffers[2 * layer : 2 * layer + 2]
        )
        net, stage = piece.stage.net(layer), piece.stage.stage
        if piece.count == piece.stage.tokens:
            self._device.launch(net, stage, io.inputs, [io.states, keys, values])
            return
        self._device.launch(net, stage, io.inputs, [io.states, io.keys, io.values])
        self._device.copy(keys, self.rows.rows(io.keys, 0, piece.count))
        self._device.copy(values, self.rows.rows(io.values, 0, piece.count))

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

    def _mask(self, stage: BlockStage, length: int, dtype: str) -> NDArray[Any]:
        """Hide what no token may see. Shapes: (1, 1, T, S + T), or (1, 1, T, T) without history."""
        history = self._plan.context if stage.reads_history else 0
        mask = np.full((1, 1, stage.tokens, history + stage.tokens), _MASKED[dtype])
        mask[..., :length] = 0
        mask[0, 0, :, history:][np.tri(stage.tokens, dtype=bool)] = 0
        return mask

    def _stage_io(self, stage: BlockStage) -> list[_LayerIo]:
        """Choose the memory of every layer: the nets' own where they have it, else one for all."""
        shapes = self._device.nets[stage.net(0)].stages[stage.stage]
        if not stage.has_own_io:
            shared = [self._device.allocate(one.dtype, one.shape) for one in shapes.inputs[:3]]
            keys, values = (self._device.allocate(one.dtype, one.shape) for one in shapes.outputs[1:])
            return [
                _LayerIo((*shared, *self._history_inputs(stage, layer)), shared[0], keys, values)
                for layer in range(self._plan.layers)
            ]
        device, index = self._device, stage.stage
        first = [device.input(stage.net(0), one, index) for one in range(3)]
        layers: list[_LayerIo] = []
        for layer in range(self._plan.layers):
            outputs = [device.output(stage.net(layer), one, index) for one in range(3)]
            states = layers[-1].states if layers else first[0]
            inputs = (states, *first[1:], *self._history_inputs(stage, layer))
            layers.append(_LayerIo(inputs, outputs[0], outputs[1], outputs[2]))
        return layers

    def _history_inputs(self, stage: BlockStage, layer: int) -> tuple[Buffer, ...]:
        return self.rows.buffers[2 * layer : 2 * layer + 2] if stage.reads_history else ()


def _history(device: Device, plan: NetPlan) -> list[Buffer]:
    """Return keys and values of every layer: what the nets read themselves, else memory of our own."""
    stage = next(stage for stage in plan.stages if stage.reads_history)

    def place(layer: int, index: int) -> Buffer:
        if stage.has_own_io:
            return device.input(stage.net(layer), index, stage.stage)
        tensor: TensorInfo = device.nets[stage.net(layer)].stages[stage.stage].inputs[index]
        return device.allocate(tensor.dtype, tensor.shape)

    return [place(layer, index) for layer in range(plan.layers) for index in (3, 4)]


def widened(buffer: Buffer, values: NDArray[Any]) -> NDArray[Any]:
    """Return floats of any length as float32, integers as they are."""
    if buffer.dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32) if buffer.dtype == "float16" else values
