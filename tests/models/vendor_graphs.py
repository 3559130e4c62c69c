"""The ONNX graphs that the vendor's export gives for a model: embedding, blocks, blocks with a cache, head.

A program of its own: it needs numpy and onnx alone and runs inside the environment of ``vendor_bmodel``.
Arguments: a folder that holds ``shape.json`` and ``weights.npz`` (Llama layout); the graphs go there too.
Not here: compiling them.
Source: sample/Baichuan2/tools/export_onnx.py and modeling_baichuan.py of sophgo/sophon-demo; the operators
are those of torch's exporter at opset 15.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["write_graphs"]

Array = NDArray[Any]
Ports = Mapping[str, tuple[int, Sequence[int]]]

OPSET = 15
IR_VERSION = 8
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


class Graph:
    """Nodes and constants of one graph; every value is a name."""

    def __init__(self, weights: Mapping[str, Array], shape: Mapping[str, float]) -> None:
        self.shape = shape
        self.heads, self.hidden = int(shape["heads"]), int(shape["hidden_size"])
        self.head_size = self.hidden // self.heads
        self._weights = weights
        self._nodes: list[NodeProto] = []
        self._constants: list[TensorProto] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: int | list[int]) -> str:
        """Append a node and return the name of its last output, which is given; any before it is not used."""
        output = output or f"{operator}_{len(self._nodes)}"
        outputs = ["value", output] if operator == "TopK" else [output]
        node = helper.make_node(operator, list(inputs), outputs)
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        self._nodes.append(node)
        return output

    def constant(self, values: Array) -> str:
        """Append a constant and return its name."""
        name = f"constant_{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(values, name))
        return name

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def indices(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def weight(self, name: str) -> Array:
        return self._weights[f"{name}.weight"].astype(np.float32)

    def linear(self, values: str, *names: str) -> str:
        """Multiply with one or more layers side by side: q, k and v are one matrix, W_pack."""
        matrix = np.concatenate([self.weight(name) for name in names])
        return self.add("MatMul", values, self.constant(np.ascontiguousarray(matrix.T)))

    def norm(self, states: str, name: str) -> str:
        squares = self.add("Pow", states, self.number(2))
        mean = self.add("ReduceMean", squares, axes=[-1], keepdims=1)
        root = self.add("Sqrt", self.add("Add", mean, self.number(self.shape["norm_eps"])))
        scaled = self.add("Mul", states, self.add("Reciprocal", root))
        return self.add("Mul", self.constant(self.weight(name)), scaled)

    def write(self, path: Path, inputs: Ports, outputs: Ports) -> None:
        ports = [
            [helper.make_tensor_value_info(name, kind, list(size)) for name, (kind, size) in side.items()]
            for side in (inputs, outputs)
        ]
        graph = helper.make_graph(self._nodes, path.stem, *ports, initializer=self._constants)
        opsets = [helper.make_opsetid("", OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
        path.write_bytes(model.SerializeToString())


def write_graphs(folder: Path) -> None:
    """Write every graph of the model in ``folder`` beside its weights."""
    shape: dict[str, float] = json.loads((folder / "shape.json").read_text("utf-8"))
    weights: dict[str, Array] = dict(np.load(folder / "weights.npz"))
    write_embedding(folder, Graph(weights, shape))
    write_head(folder, Graph(weights, shape))
    for layer in range(int(shape["layers"])):
        write_block(folder, Graph(weights, shape), layer, has_history=False)
        write_block(folder, Graph(weights, shape), layer, has_history=True)


def write_embedding(folder: Path, graph: Graph) -> None:
    table = graph.constant(graph.weight("model.embed_tokens"))
    graph.add("Gather", table, "input_ids", output="input_embed")
    length = int(graph.shape["context"])
    inputs = {"input_ids": (INT64, [1, length])}
    graph.write(folder / "embedding.onnx", inputs, {"input_embed": (FLOAT, [1, length, graph.hidden])})


def write_head(folder: Path, graph: Graph) -> None:
    """The final norm is part of the head, and of the logits only the best one's index is left."""
    logits = graph.linear(graph.norm("hidden_states", "model.norm"), "lm_head")
    graph.add("TopK", logits, graph.indices(1), output="token", axis=-1, largest=1, sorted=1)
    inputs = {"hidden_states": (FLOAT, [1, graph.hidden])}
    graph.write(folder / "lm_head.onnx", inputs, {"token": (INT64, [1, 1])})


def write_block(folder: Path, graph: Graph, layer: int, *, has_history: bool) -> None:
    context = int(graph.shape["context"])
    tokens, keys = (1, context + 1) if has_history else (context, context)
    kv = [graph.heads, graph.head_size]
    inputs = {
        "input_states": (FLOAT, [1, tokens, graph.hidden]),
        "position_ids": (INT64, [1, tokens]),
        "attention_mask": (FLOAT, [1, 1, tokens, keys]),
    }
    if has_history:
        inputs |= {name: (FLOAT, [1, context, *kv]) for name in ("history_k", "history_v")}
    outputs = {"hidden_states": (FLOAT, [1, tokens, graph.hidden])}
    outputs |= {name: (FLOAT, [1, tokens, *kv]) for name in ("past_k", "past_v")}
    prefix = f"model.layers.{layer}"
    normed = graph.norm("input_states", f"{prefix}.input_layernorm")
    attended = attention(graph, normed, f"{prefix}.self_attn", tokens=tokens, has_history=has_history)
    states = graph.add("Add", "input_states", attended)
    changed = mlp(graph, graph.norm(states, f"{prefix}.post_attention_layernorm"), f"{prefix}.mlp")
    graph.add("Add", states, changed, output="hidden_states")
    name = f"block_cache_{layer}" if has_history else f"block_{layer}"
    graph.write(folder / f"{name}.onnx", inputs, outputs)


def attention(graph: Graph, states: str, prefix: str, *, tokens: int, has_history: bool) -> str:
    query, key, value = split_heads(graph, states, prefix, tokens)
    cosines, sines = (rows(graph, function, tokens) for function in (np.cos, np.sin))
    query = rotate(graph, query, cosines, sines)
    key = graph.add("Identity", rotate(graph, key, cosines, sines), output="past_k")
    value = graph.add("Identity", value, output="past_v")
    if has_history:
        key = graph.add("Concat", "history_k", key, axis=1)
        value = graph.add("Concat", "history_v", value, axis=1)
    # Both sides are scaled by the square root of the scale, as torch's exporter does.
    scale = graph.number(graph.head_size**-0.25)
    query = graph.add("Mul", graph.add("Transpose", query, perm=[0, 2, 1, 3]), scale)
    key = graph.add("Mul", graph.add("Transpose", key, perm=[0, 2, 3, 1]), scale)
    scores = graph.add("Add", graph.add("MatMul", query, key), "attention_mask")
    values = graph.add("Transpose", value, perm=[0, 2, 1, 3])
    mixed = graph.add("MatMul", graph.add("Softmax", scores, axis=-1), values)
    mixed = graph.add("Transpose", mixed, perm=[0, 2, 1, 3])
    mixed = graph.add("Reshape", mixed, graph.indices(1, tokens, graph.hidden))
    return graph.linear(mixed, f"{prefix}.o_proj")


def split_heads(graph: Graph, states: str, prefix: str, tokens: int) -> list[str]:
    """Shapes: (1, T, E) -> three of (1, T, H, D)."""
    packed = graph.linear(states, *(f"{prefix}.{one}_proj" for one in "qkv"))
    packed = graph.add("Reshape", packed, graph.indices(1, tokens, 3, graph.hidden))
    packed = graph.add("Unsqueeze", packed, graph.indices(0))
    packed = graph.add("Transpose", packed, perm=[3, 1, 2, 0, 4])
    packed = graph.add("Squeeze", packed, graph.indices(-2))
    size = graph.indices(1, tokens, graph.heads, graph.head_size)
    parts = [graph.add("Gather", packed, graph.constant(np.array(one, np.int64)), axis=0) for one in range(3)]
    return [graph.add("Reshape", part, size) for part in parts]


def rows(graph: Graph, function: np.ufunc, tokens: int) -> str:
    """Gather a table's rows at the positions. Shapes: -> (1, T, 1, D)."""
    size, theta = graph.head_size, graph.shape["rope_theta"]
    frequencies = 1.0 / theta ** (np.arange(0, size, 2) / size)
    angles = np.outer(np.arange(int(graph.shape["context"])), frequencies)
    table = function(np.concatenate([angles, angles], axis=1)).astype(np.float32)
    gathered = graph.add("Gather", graph.constant(table), "position_ids", axis=0)
    gathered = graph.add("Unsqueeze", gathered, graph.indices(1))
    return graph.add("Transpose", gathered, perm=[0, 2, 1, 3])


def rotate(graph: Graph, values: str, cosines: str, sines: str) -> str:
    half, end = graph.head_size // 2, graph.head_size
    axis = graph.indices(3)
    low = graph.add("Slice", values, graph.indices(0), graph.indices(half), axis)
    high = graph.add("Slice", values, graph.indices(half), graph.indices(end), axis)
    turned = graph.add("Concat", graph.add("Neg", high), low, axis=-1)
    return graph.add("Add", graph.add("Mul", values, cosines), graph.add("Mul", turned, sines))


def mlp(graph: Graph, states: str, prefix: str) -> str:
    gate = graph.linear(states, f"{prefix}.gate_proj")
    gate = graph.add("Mul", gate, graph.add("Sigmoid", gate))
    return graph.linear(
        graph.add("Mul", gate, graph.linear(states, f"{prefix}.up_proj")), f"{prefix}.down_proj"
    )


if __name__ == "__main__":
    write_graphs(Path(sys.argv[1]))
