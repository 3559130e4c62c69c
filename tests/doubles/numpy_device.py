"""A device in numpy: the compiled nets as they behave, traps included, with nothing installed.

Two forms: ``own``, as our bundles are (some layers per net, stages for numbers of new tokens and of history
rows, history in the net's own memory), and ``converter``, as the vendor's converters write them (a net for
prompts, one for single tokens, memory shared by all nets). Foreign memory is copied into a net's own first,
as libbmrt does. Positions beyond the model's table end the test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.engine.device.base import (
    DTYPES,
    Buffer,
    Device,
    DeviceCounts,
    DeviceMemory,
    NetInfo,
    Shape,
    StageInfo,
    TensorInfo,
)
from baichuan2_tpu.engine.device.checks import (
    check_copy,
    check_launch,
    check_memory,
    check_values,
    check_view,
)
from baichuan2_tpu.errors import DeviceError
from models.reference import alibi_slopes, rms_norm, rotate

__all__ = ["NumpyBuffer", "NumpyDevice", "rounded", "to_float"]

Form = Literal["own", "converter"]
HeadOutput = Literal["logits", "token", "sample"]
Values = NDArray[np.float64]

_CANDIDATES = 64


class NumpyBuffer(Buffer):
    def __init__(self, array: NDArray[Any], dtype: str) -> None:
        self.array = array
        self.dtype = dtype
        self.shape = array.shape


class NumpyDevice(Device):
    """``free_bytes`` None is a device that cannot tell. The nets' own memory holds garbage at first.

    ``context`` rows of history are the largest stage; ``histories`` are all, for every number of tokens.
    ``fail_at`` is the number of the launch that fails, counted from 0.
    """

    name = "numpy"
    chip = "bm1684x"

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        context: int = 64,
        stages: Sequence[int] = (1, 16),
        histories: Sequence[int] = (),
        layers_per_net: int = 1,
        head_rows: Sequence[int] = (1,),
        form: Form = "own",
        head: HeadOutput = "logits",
        has_embedding: bool = False,
        dtype: str = "float16",
        free_bytes: int | None = 1 << 30,
    ) -> None:
        self.config = config
        self.context = context
        self.histories = sorted({context, *histories}, reverse=True)
        self.layers_per_net = layers_per_net
        self.head_rows = sorted(head_rows, reverse=True)
        self.counts = DeviceCounts()
        self.is_busy = False
        self.weights = {
            name.removesuffix(".weight"): array.astype(np.float64) for name, array in weights.items()
        }
        self.head_output = head
        self.dtype = dtype
        # The vendor's converters widen the logits, ours does not.
        self.logits_dtype = "float32" if form == "converter" else dtype
        self.free_bytes = free_bytes
        self.launches: list[tuple[str, int]] = []
        self.fail_at: int | None = None
        self.is_closed = False
        self.nets = {net.name: net for net in self._make_nets(stages, form, has_embedding)}
        self._own = {name: self._make_memory(net) for name, net in self.nets.items()}

    def memory(self) -> DeviceMemory | None:
        return None if self.free_bytes is None else DeviceMemory(1 << 30, self.free_bytes)

    def allocate(self, dtype: str, shape: Shape) -> NumpyBuffer:
        check_memory(math.prod(shape) * DTYPES[dtype].itemsize, self.memory(), "a buffer")
        return NumpyBuffer(np.zeros(shape, DTYPES[dtype]), dtype)

    def view(self, buffer: Buffer, offset: int, shape: Shape) -> NumpyBuffer:
        check_view(buffer, offset, shape)
        flat = self._array(buffer).reshape(-1)
        return NumpyBuffer(flat[offset : offset + math.prod(shape)].reshape(shape), buffer.dtype)

    def input(self, net: str, index: int, stage: int = 0) -> NumpyBuffer:
        assert self.nets[net].has_own_io
        shape = self.nets[net].stages[stage].inputs[index].shape
        return self.view(self._own[net][index], 0, shape)

    def output(self, net: str, index: int, stage: int = 0) -> NumpyBuffer:
        assert self.nets[net].has_own_io
        info = self.nets[net].stages[stage]
        shape = info.outputs[index].shape
        if index == 0:
            return self.view(self._own[net][len(info.inputs)], 0, shape)
        past = len(info.inputs) - len(info.outputs) + index  # new rows are gathered behind those they follow
        return self.view(self._own[net][past], math.prod(info.inputs[past].shape), shape)

    def upload(self, buffer: Buffer, values: NDArray[Any]) -> None:
        check_values(buffer, values)
        self.wait()
        self.counts.uploaded_bytes += values.nbytes
        self._array(buffer)[...] = values

    def download(self, buffer: Buffer) -> NDArray[Any]:
        self.wait()
        values = self._array(buffer).copy()
        self.counts.downloaded_bytes += values.nbytes
        return values

    def copy(self, destination: Buffer, source: Buffer) -> None:
        check_copy(destination, source)
        assert not np.shares_memory(self._array(destination), self._array(source))
        self.wait()
        self.counts.copies += 1
        self._array(destination)[...] = self._array(source).reshape(destination.shape)

    def launch(self, net: str, stage: int, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        info = self.nets[net]
        check_launch(info, stage, inputs, outputs)
        if self.fail_at == len(self.launches):
            raise DeviceError("the device has fallen off the bus")
        self.launches.append((net, stage))
        self.counts.launches += 1
        self.is_busy = True
        own = [self.view(one, 0, buffer.shape) for one, buffer in zip(self._own[net], inputs, strict=False)]
        for mine, theirs in zip(own, inputs, strict=True):
            if not np.shares_memory(mine.array, self._array(theirs)):
                mine.array[...] = self._array(theirs)
        with np.errstate(over="ignore", invalid="ignore"):  # as a chip, which says nothing
            results = self._compute(net, [to_float(mine.array, mine.dtype) for mine in own])
            self._gather_new_rows(net, own, results)
            for buffer, values in zip(outputs, results, strict=True):
                self._array(buffer)[...] = rounded(values.reshape(buffer.shape), buffer.dtype)

    def _make_memory(self, net: NetInfo) -> list[NumpyBuffer]:
        """Return memory for inputs, with room for new rows behind the history, and for outputs."""
        stage = net.stages[0]
        tokens, is_block = stage.inputs[0].shape[1], net.name.startswith("block_cache")
        buffers: list[NumpyBuffer] = []
        for index, info in enumerate((*stage.inputs, *stage.outputs)):
            is_history = is_block and len(stage.inputs) - len(stage.outputs) < index < len(stage.inputs)
            longer = (1, info.shape[1] + tokens, *info.shape[2:])
            wide = TensorInfo(info.name, info.dtype, longer) if is_history else info
            buffers.append(NumpyBuffer(self._garbage(wide), wide.dtype))
        return buffers

    def _gather_new_rows(self, net: str, own: list[NumpyBuffer], results: list[NDArray[Any]]) -> None:
        """Overwrite the rows behind a net's history, as compiled nets do, which gather what is new there."""
        if not net.startswith("block_cache"):
            return
        tensors = len(results) - 1
        memories = self._own[net][len(own) - tensors : len(own)]
        for memory, past, values in zip(memories, own[-tensors:], results[1:], strict=True):
            start, new = past.shape[1], values.reshape(-1, *past.shape[2:])
            memory.array[0, start : start + len(new)] = rounded(new, memory.dtype)

    def wait(self) -> None:
        self.counts.waits += self.is_busy
        self.is_busy = False

    def close(self) -> None:
        self.is_closed = True

    def _compute(self, net: str, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        if net == "lm_head":
            return self._head(inputs[0].astype(np.float64).reshape(-1, self.config.hidden_size))
        if net.startswith("embedding"):
            return [self.weights["model.embed_tokens"][inputs[0]]]
        return self._net(int(net.rpartition("_")[2]), inputs)

    def _head(self, states: Values) -> list[NDArray[Any]]:
        normed = rms_norm(states, self.weights["model.norm"], self.config.norm_eps)
        logits = to_float(rounded(normed @ self.weights["lm_head"].T, self.logits_dtype), self.logits_dtype)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :_CANDIDATES]
        return {
            "logits": [logits],
            "token": [best[:, :1]],
            "sample": [np.take_along_axis(logits, best, 1), best],
        }[self.head_output]

    def _net(self, number: int, inputs: list[NDArray[Any]]) -> list[NDArray[Any]]:
        states, mask = inputs[0][0].astype(np.float64), inputs[2][0, 0].astype(np.float64)
        positions = inputs[1][0]
        is_alibi = self.config.position == "alibi"
        history = inputs[3 + is_alibi :]
        assert 0 <= positions.min() <= positions.max() < self.config.max_context, "beyond the table"
        row_positions = np.concatenate([inputs[3].ravel(), positions]) if is_alibi else positions
        assert 0 <= row_positions.min() <= row_positions.max() < self.config.max_context, "beyond the table"
        outputs: list[NDArray[Any]] = []
        for layer in self._layers_of(number):
            old, history = history[:2], history[2:]
            states, keys, values = self._block(layer, states, (positions, row_positions), mask, old)
            states = to_float(rounded(states, self.dtype), self.dtype).astype(np.float64)
            outputs += [keys, values]
        return [states, *outputs]

    def _block(
        self,
        layer: int,
        states: Values,
        positions: tuple[NDArray[Any], NDArray[Any]],
        mask: Values,
        old: list[NDArray[Any]],
    ) -> tuple[Values, Values, Values]:
        config, prefix = self.config, f"model.layers.{layer}"
        new_positions, row_positions = positions

        def linear(name: str, values: Values) -> Values:
            return values @ self.weights[f"{prefix}.{name}_proj"].T

        def norm(name: str) -> Values:
            return rms_norm(states, self.weights[f"{prefix}.{name}"], config.norm_eps)

        normed = norm("input_layernorm")
        heads = [
            linear(f"self_attn.{letter}", normed)
            .reshape(len(states), -1, config.head_size)
            .transpose(1, 0, 2)
            for letter in "qkv"
        ]
        queries, keys = heads[:2]
        if config.position == "rope":
            queries, keys = (rotate(turned, config.rope_theta, new_positions) for turned in heads[:2])
        keys, values = (tensor.transpose(1, 0, 2) for tensor in (keys, heads[2]))
        # What is attended to is what a later launch reads: rounded.
        fresh = [to_float(rounded(tensor, self.dtype), self.dtype) for tensor in (keys, values)]
        seen = [
            np.concatenate([*(past[0] for past in old[index : index + 1]), new])
            for index, new in enumerate(fresh)
        ]
        shared = config.heads // config.kv_heads
        all_keys, all_values = (np.repeat(rows.transpose(1, 0, 2), shared, axis=0) for rows in seen)
        scores = queries @ all_keys.transpose(0, 2, 1).astype(np.float64) / math.sqrt(config.head_size)
        if config.position == "alibi":
            distances = row_positions[None, :] - new_positions[:, None]
            scores = scores + alibi_slopes(config.heads)[:, None, None] * distances
        scores = scores + mask
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        states = states + linear(
            "self_attn.o", (weights @ all_values).transpose(1, 0, 2).reshape(len(states), -1)
        )
        normed = norm("post_attention_layernorm")
        gate = linear("mlp.gate", normed)
        states = states + linear("mlp.down", gate / (1 + np.exp(-gate)) * linear("mlp.up", normed))
        return states, keys, values

    def _layers_of(self, number: int) -> range:
        first = number * self.layers_per_net
        return range(first, min(first + self.layers_per_net, self.config.layers))

    def _make_nets(self, stages: Sequence[int], form: Form, has_embedding: bool) -> list[NetInfo]:
        # As compiled, the longest stage comes first.
        longest_first = sorted(stages, reverse=True)
        nets: list[NetInfo] = []
        for number in range(math.ceil(self.config.layers / self.layers_per_net)):
            if form == "own":
                blocks = tuple(
                    self._block_stage(number, tokens, history)
                    for history in self.histories
                    for tokens in longest_first
                )
                nets.append(NetInfo(f"block_cache_{number}", False, True, blocks))
                continue
            prompt = self._block_stage(number, longest_first[0], 0)
            single = self._block_stage(number, 1, self.context)
            nets.append(NetInfo(f"block_{number}", False, False, (prompt,)))
            nets.append(NetInfo(f"block_cache_{number}", False, False, (single,)))
        if has_embedding and form == "own":
            embeddings = tuple(self._embedding_stage(tokens) for tokens in longest_first)
            nets.append(NetInfo("embedding", False, False, embeddings))
        elif has_embedding:
            nets += [
                NetInfo("embedding", False, False, (self._embedding_stage(longest_first[0]),)),
                NetInfo("embedding_cache", False, False, (self._embedding_stage(1),)),
            ]
        return [*nets, self._head_net()]

    def _block_stage(self, number: int, tokens: int, history: int) -> StageInfo:
        config = self.config
        states = TensorInfo("states", self.dtype, (1, tokens, config.hidden_size))
        row = (config.kv_heads, config.head_size)
        new, old = (1, tokens, *row), (1, history, *row)
        inputs = [
            states,
            TensorInfo("position_ids", "int32", (1, tokens)),
            TensorInfo("attention_mask", self.dtype, (1, 1, tokens, history + tokens)),
        ]
        if config.position == "alibi":
            inputs.append(TensorInfo("history_positions", "int32", (1, history)))
        outputs = [states]
        for layer in self._layers_of(number):
            inputs += [TensorInfo(f"{layer}.history_{letter}", self.dtype, old) for letter in "kv" if history]
            outputs += [TensorInfo(f"{layer}.{letter}", self.dtype, new) for letter in "kv"]
        return StageInfo(tuple(inputs), tuple(outputs))

    def _embedding_stage(self, tokens: int) -> StageInfo:
        states = TensorInfo("states", self.dtype, (1, tokens, self.config.hidden_size))
        return StageInfo((TensorInfo("ids", "int32", (1, tokens)),), (states,))

    def _head_net(self) -> NetInfo:
        return NetInfo("lm_head", False, False, tuple(self._head_stage(rows) for rows in self.head_rows))

    def _head_stage(self, rows: int) -> StageInfo:
        states = TensorInfo("states", self.dtype, (1, rows, self.config.hidden_size))
        outputs = {
            "logits": [TensorInfo("logits", self.logits_dtype, (rows, self.config.vocabulary_size))],
            "token": [TensorInfo("token", "int32", (rows, 1))],
            "sample": [
                TensorInfo("logits", self.logits_dtype, (rows, _CANDIDATES)),
                TensorInfo("ids", "int32", (rows, _CANDIDATES)),
            ],
        }[self.head_output]
        return StageInfo((states,), tuple(outputs))

    def _garbage(self, info: TensorInfo) -> NDArray[Any]:
        return rounded(np.full(info.shape, -1 if info.dtype == "int32" else np.nan), info.dtype)

    def _array(self, buffer: Buffer) -> NDArray[Any]:
        assert isinstance(buffer, NumpyBuffer)
        return buffer.array


def rounded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return values as a device holds them; to bfloat16 they are cut, which is rounding enough."""
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(DTYPES[dtype])


def to_float(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Return what a device holds as numbers that numpy knows."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values
