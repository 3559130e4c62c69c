"""onnxruntime's ``MatMulNBits``: the linear layers of a few blocks, and nothing else.

No attention, norms, embedding or head: the time is a lower bound of what a whole model would take.
Source: the operator's page in onnxruntime's ``docs/ContribOperators.md``; ``accuracy_level`` 4 is int8.
"""

from __future__ import annotations

import time

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from peers.protocol import Description, Job

__all__ = ["OnnxPeer", "load"]

BLOCK_SIZE = 64
MOST_LAYERS = 4
"""The graph is one protobuf, which holds 2 GB at most; all blocks take the same time, so a few suffice."""


class OnnxPeer:
    """The linear layers of a few blocks as one graph."""

    def __init__(self, job: Job) -> None:
        started = time.perf_counter()
        layers = min(job.layers, MOST_LAYERS)
        graph = _Graph(job.bits)
        output = "input"
        for layer in range(layers):
            output = graph.add_layer(output, layer, job.hidden_size, job.intermediate_size)
        self._session = graph.session(output, job.hidden_size, job.threads)
        generator = np.random.default_rng(0)
        self._input = generator.standard_normal((job.context, job.hidden_size), np.float32)
        self.description = Description(
            version=f"onnxruntime {onnxruntime.__version__}",
            formats=f"MatMulNBits {job.bits} bits, block {BLOCK_SIZE}, asymmetric; linears only",
            kernels="not told",
            layers=layers,
            block_bytes=graph.weight_bytes,
            head_bytes=0,
            load_s=time.perf_counter() - started,
        )

    def prefill(self, tokens: int) -> float:
        """Return the seconds for the linears of a prompt."""
        return self._run(tokens)

    def decode(self, prompt_tokens: int, tokens: int) -> float:
        """Return the seconds for the linears of ``tokens`` single tokens; a prompt changes nothing here."""
        del prompt_tokens
        return sum(self._run(1) for _ in range(tokens))

    def _run(self, rows: int) -> float:
        inputs = {"input": self._input[:rows]}
        started = time.perf_counter()
        self._session.run(None, inputs)
        return time.perf_counter() - started


class _Graph:
    """Nodes and weights of the graph under construction."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._generator = np.random.default_rng(0)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []
        self.weight_bytes = 0

    def add_layer(self, source: str, layer: int, hidden: int, inner: int) -> str:
        """Add the linears of one block, connected by the simplest operators that keep the shapes."""
        mixed = self._linear(source, f"qkv{layer}", hidden, 3 * hidden)
        third = self._constant(f"third{layer}", np.array([hidden] * 3, np.int64))
        parts = [f"{letter}{layer}" for letter in "qkv"]
        self._nodes.append(helper.make_node("Split", [mixed, third], parts, axis=1))
        # Attention itself is left out: the queries stand for its result.
        attended = self._linear(parts[0], f"o{layer}", hidden, hidden)
        gate = self._linear(attended, f"gate{layer}", hidden, inner)
        up = self._linear(attended, f"up{layer}", hidden, inner)
        self._nodes.append(helper.make_node("Mul", [gate, up], [f"product{layer}"]))
        return self._linear(f"product{layer}", f"down{layer}", inner, hidden)

    def session(self, output: str, hidden: int, threads: int) -> onnxruntime.InferenceSession:
        """Close the graph and load it."""
        ends = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["tokens", hidden])
            for name in ("input", output)
        ]
        graph = helper.make_graph(self._nodes, "linears", ends[:1], ends[1:], self._weights)
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def _linear(self, source: str, name: str, inputs: int, outputs: int) -> str:
        groups = inputs // BLOCK_SIZE
        block_bytes = BLOCK_SIZE * self._bits // 8
        weights = self._random_bytes(outputs, groups, block_bytes)
        # Small enough that four chained blocks stay finite in float32.
        scales = (self._generator.random((outputs, groups), np.float32) + 0.5) * 2.0**-self._bits / 16
        zeros = self._random_bytes(outputs, groups * self._bits // 8)
        self.weight_bytes += weights.nbytes + scales.nbytes + zeros.nbytes
        tensors = {"weights": weights, "scales": scales, "zeros": zeros}
        names = [self._constant(f"{name}_{part}", values) for part, values in tensors.items()]
        self._nodes.append(
            helper.make_node(
                "MatMulNBits",
                [source, *names],
                [name],
                domain="com.microsoft",
                K=inputs,
                N=outputs,
                bits=self._bits,
                block_size=BLOCK_SIZE,
                accuracy_level=4,
            )
        )
        return name

    def _random_bytes(self, *shape: int) -> NDArray[np.uint8]:
        return self._generator.integers(0, 256, shape, np.uint8)

    def _constant(self, name: str, values: NDArray[np.generic]) -> str:
        self._weights.append(numpy_helper.from_array(values, name))
        return name


def load(job: Job) -> OnnxPeer:
    """Build the graph for the job's shape."""
    return OnnxPeer(job)
