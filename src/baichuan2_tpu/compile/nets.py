"""The nets of a bundle as the compiler reads them: blocks of some layers each, the head, the embedding.

A block net takes T new tokens after S rows of history: states (1, T, E), position_ids (1, T), attention_mask
(1, 1, T, S + T), with ALiBi history_positions (1, S), and of each of its layers history_k and history_v
(1, S, KV, D); it gives states (1, T, E), and of each layer k and v (1, T, KV, D). The first S columns of the
mask stand for the history, the last T for the new tokens. Which sequence a row belongs to, the mask alone
says. The text is the same for all nets with as many layers, but for the name.
Not here: the weights (``net_weights``), running the compiler (``tpuc``).
Source of the operations' use: ``llm/LlmConverter.py`` of tpu_mlir 1.30.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from baichuan2_tpu.checkpoint.layout import ATTENTION_NORM, ATTENTION_OUTPUT, DOWN, GATE, MLP_NORM, QKV, UP
from baichuan2_tpu.compile import alibi
from baichuan2_tpu.compile.mlir import Element, Graph, Value
from baichuan2_tpu.compile.settings import SAMPLE_CANDIDATES, CompileSettings, compiled_group_size
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.manifest import HEAD_NET, Float, Stage

__all__ = [
    "COSINES",
    "EMBEDDING",
    "FINAL_NORM",
    "HEAD",
    "SINES",
    "WEIGHT_FILE",
    "Net",
    "block_net",
    "embedding_net",
    "head_net",
    "layers_of",
]

WEIGHT_FILE = "../weights.npz"
"""Where every net looks for its weights, from the folder in which it is compiled."""

COSINES, SINES = "rotary_cos", "rotary_sin"
HEAD, FINAL_NORM, EMBEDDING = HEAD_NET, "norm", "embedding"

Heads = tuple[Value, Value, Value]
"""Queries, keys and values; as the result of a layer states, keys and values."""

_ELEMENTS: dict[Float, Element] = {"float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Net:
    """The text of one stage of one net, and how the compiler is to treat it."""

    name: str
    stage: Stage
    text: str
    mode: str
    """The compiler's name for how it computes: "W4F16"."""
    group_size: int
    """Columns that share a scale."""
    has_own_io: bool
    """True for memory of its own for inputs and outputs, where a history can stay between launches."""


def block_net(config: ModelConfig, settings: CompileSettings, number: int, stage: Stage) -> Net:
    """Return one stage of the block net ``number``, which holds the layers that ``layers_of`` names."""
    name = f"block_cache_{number}"
    graph = Graph(name, WEIGHT_FILE)
    text = _Block(graph, config, settings, stage).text(len(layers_of(config, settings, number)))
    mode, group_size = _mode(settings, settings.bits), compiled_group_size(config)
    return Net(name, stage, text, mode, group_size, has_own_io=True)


def layers_of(config: ModelConfig, settings: CompileSettings, number: int) -> range:
    """Return the layers of the block net ``number``; the last net may have fewer than the others."""
    first = number * settings.layers_per_net
    return range(first, min(first + settings.layers_per_net, config.layers))


def head_net(config: ModelConfig, settings: CompileSettings, rows: int = 1) -> Net:
    """Return the final norm and the head of some rows of states, with the outputs that were chosen.

    Shapes: (1, R, E) → logits (R, V); or token (R, 1); or the best logits (R, 64), falling, and their ids.
    """
    bits = {"w4": 4, "w8": 8, "f16": 16}[settings.head]
    graph = Graph(HEAD, WEIGHT_FILE)
    states = graph.input("states", (1, rows, config.hidden_size))
    normed = _norm(graph, FINAL_NORM, states, config.norm_eps)
    form = _Form(config.vocabulary_size, bits, settings.dtype, compiled_group_size(config))
    logits = graph.reshape(
        "logits", _linear(graph, "head", normed, HEAD, form), (rows, config.vocabulary_size)
    )
    outputs = [logits]
    if settings.head_output == "token":
        outputs = [graph.top(("best_logit", "token"), logits, 1)[1]]
    elif settings.head_output == "sample":
        outputs = list(graph.top(("best_logits", "best_ids"), logits, SAMPLE_CANDIDATES))
    return Net(
        HEAD, Stage(rows, 0), graph.text(outputs), _mode(settings, bits), form.group_size, has_own_io=False
    )


def embedding_net(config: ModelConfig, settings: CompileSettings, tokens: int) -> Net:
    """Return the stage of ``tokens`` tokens of the embedding. Shapes: ids (1, T) → states (1, T, E)."""
    graph = Graph(EMBEDDING, WEIGHT_FILE)
    ids = graph.input("input_ids", (1, tokens), "si32")
    shape = (config.vocabulary_size, config.hidden_size)
    table = graph.weight(f"{EMBEDDING}.weight", shape, _ELEMENTS[settings.dtype])
    text = graph.text([graph.gather("states", table, ids)])
    mode, group_size = _mode(settings, 16), compiled_group_size(config)
    return Net(EMBEDDING, Stage(tokens, 0), text, mode, group_size, has_own_io=False)


@dataclass(frozen=True, slots=True)
class _Form:
    """The outputs of a linear, and how its weights are stored."""

    outputs: int
    bits: int
    dtype: Float
    group_size: int


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all layers of a net read: the mask, and the sines and cosines of RoPE or what ALiBi needs."""

    mask: Value
    rotations: tuple[Value, Value] | None = None
    positions: alibi.Positions | None = None


class _Block:
    """Some consecutive layers, written into ``graph``. Their weights are named by their number in the net."""

    def __init__(self, graph: Graph, config: ModelConfig, settings: CompileSettings, stage: Stage) -> None:
        self.graph = graph
        self.config = config
        self.settings = settings
        self.tokens, self.history = stage

    def text(self, layers: int) -> str:
        graph, config = self.graph, self.config
        old = (1, self.history, config.kv_heads, config.head_size)
        states = graph.input("input_states", (1, self.tokens, config.hidden_size))
        shared = self.read_shared()
        past = [
            (graph.input(f"{layer}.history_k", old), graph.input(f"{layer}.history_v", old))
            for layer in range(layers)
        ]
        rows: list[Value] = []
        for layer in range(layers):
            states, keys, values = _Layer(self, f"{layer}.", shared).write(states, past[layer])
            rows += [keys, values]
        return graph.text([states, *rows])

    def read_shared(self) -> _Shared:
        """Read positions and mask, and make of the positions what every layer needs."""
        graph, config = self.graph, self.config
        positions = graph.input("position_ids", (1, self.tokens), "si32")
        mask = graph.input("attention_mask", (1, 1, self.tokens, self.history + self.tokens))
        if config.position == "alibi":
            old = graph.input("history_positions", (1, self.history), "si32")
            context = self.settings.context
            compared = alibi.compare_positions(graph, config.heads, context, (old, positions), mask)
            return _Shared(mask, positions=compared)
        shape = (self.settings.context, 1, config.head_size)
        sines, cosines = (
            graph.gather(name, graph.weight(f"{name}.weight", shape), positions) for name in (SINES, COSINES)
        )
        return _Shared(mask, (sines, cosines))


class _Layer:
    """One layer of a block net; ``prefix`` is put before its names."""

    def __init__(self, block: _Block, prefix: str, shared: _Shared) -> None:
        self.graph = block.graph
        self.config = block.config
        self.settings = block.settings
        self.prefix = prefix
        self.shared = shared

    def write(self, states: Value, past: tuple[Value, Value]) -> Heads:
        """Write the layer and return its states, keys and values."""
        graph = self.graph
        heads = self.heads(self.norm(ATTENTION_NORM, states))
        output = self.linear(ATTENTION_OUTPUT, self.attend(heads, past), self.config.hidden_size)
        states = graph.add(self.name("attention_states"), states, output)
        inner = self.mlp(self.norm(MLP_NORM, states))
        return graph.add(self.name("output_states"), states, inner), heads[1], heads[2]

    def heads(self, states: Value) -> Heads:
        """Project to queries, keys and values; RoPE turns the first two by their positions."""
        rotations = self.shared.rotations
        query, key, value = QKV
        queries = self.project(query, states, self.config.heads, "queries")
        keys = self.project(key, states, self.config.kv_heads, "unturned_k" if rotations else "k")
        values = self.project(value, states, self.config.kv_heads, "v")
        if rotations:
            queries = self.graph.rotate(self.name("turned_queries"), queries, *rotations)
            keys = self.graph.rotate(self.name("k"), keys, *rotations)
        return queries, keys, values

    def attend(self, heads: Heads, past: tuple[Value, Value]) -> Value:
        """Attend to the history and to the new tokens themselves."""
        queries, keys, values = heads
        graph, shared = self.graph, self.shared
        all_keys = graph.concatenate(self.name("keys"), [past[0], keys], 1, is_in_place=True)
        all_values = graph.concatenate(self.name("values"), [past[1], values], 1, is_in_place=True)
        if shared.positions is not None:
            everything = (queries, all_keys, all_values)
            return alibi.attend(graph, self.prefix, everything, shared.positions)
        return graph.attention(self.name("attention"), queries, all_keys, all_values, shared.mask)

    def project(self, linear: str, states: Value, heads: int, name: str) -> Value:
        size = self.config.head_size
        joined = self.linear(linear, states, heads * size)
        return self.graph.reshape(self.name(name), joined, (*states.shape[:-1], heads, size))

    def mlp(self, states: Value) -> Value:
        inner = self.config.intermediate_size
        gate = self.graph.silu(self.name("mlp.gate"), self.linear(GATE, states, inner))
        gated = self.graph.multiply(self.name("mlp.gated"), gate, self.linear(UP, states, inner))
        return self.linear(DOWN, gated, self.config.hidden_size)

    def norm(self, name: str, states: Value) -> Value:
        return _norm(self.graph, self.name(name), states, self.config.norm_eps)

    def linear(self, name: str, states: Value, outputs: int) -> Value:
        settings, group_size = self.settings, compiled_group_size(self.config)
        form = _Form(outputs, settings.bits, settings.dtype, group_size)
        return _linear(self.graph, self.name(name), states, self.name(name), form)

    def name(self, name: str) -> str:
        return f"{self.prefix}{name}"


def _norm(graph: Graph, name: str, states: Value, eps: float) -> Value:
    weight = graph.weight(f"{name}.weight", (*(1 for _ in states.shape[:-1]), states.shape[-1]))
    return graph.rms_norm(name, states, weight, eps)


def _linear(graph: Graph, name: str, states: Value, source: str, form: _Form) -> Value:
    """Multiply with the weights of ``source``."""
    inputs = states.shape[-1]
    if form.bits == 16:
        weight = graph.weight(f"{source}.weight", (inputs, form.outputs), _ELEMENTS[form.dtype])
        return graph.matmul(name, states, weight)
    groups = (form.outputs, inputs // form.group_size)
    packed = (
        graph.weight(f"{source}.qweight", (form.outputs, inputs * form.bits // 8), "ui8"),
        graph.weight(f"{source}.scales", groups),
        graph.weight(f"{source}.qzeros", groups, "ui8"),
    )
    return graph.packed_matmul(name, states, packed, form.bits)


def _mode(settings: CompileSettings, bits: int) -> str:
    suffix = _ELEMENTS[settings.dtype].upper()
    return suffix if bits == 16 else f"W{bits}{suffix}"
