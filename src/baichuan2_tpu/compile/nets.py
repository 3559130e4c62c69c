"""The nets of a bundle: one block net a layer, the head, and the embedding, as the compiler reads them.

A block takes T new tokens after a history of S: states (1, T, E), position_ids (1, T), attention_mask
(1, 1, T, S + T), history_k and history_v (1, S, KV, D); it gives states (1, T, E), k and v (1, T, KV, D). The
first S columns of the mask stand for the history, the last T for the new tokens. The text is the same for
every layer, but for the name of the net.
Not here: the weights (``net_weights``), running the compiler (``tpuc``).
Source of the operations' use: ``llm/LlmConverter.py`` of tpu_mlir 1.30.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from baichuan2_tpu.compile import alibi
from baichuan2_tpu.compile.mlir import Element, Graph, Value
from baichuan2_tpu.compile.settings import GROUP_SIZE, SAMPLE_CANDIDATES, CompileSettings
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.manifest import Float

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
]

WEIGHT_FILE = "../weights.npz"
"""Where every net looks for its weights, from the folder in which it is compiled."""

COSINES, SINES = "rotary_cos", "rotary_sin"
HEAD, FINAL_NORM, EMBEDDING = "lm_head", "norm", "embedding"

Heads = tuple[Value, Value, Value]
"""Queries, keys and values."""

_ELEMENTS: dict[Float, Element] = {"float16": "f16", "bfloat16": "bf16"}


@dataclass(frozen=True, slots=True)
class Net:
    """The text of one stage of one net, and how the compiler is to treat it.

    Units: ``tokens`` new tokens a launch; ``history`` tokens of the compiled history, 0 for none.
    """

    name: str
    tokens: int
    history: int
    text: str
    mode: str
    """The compiler's name for how it computes: "W4F16"."""
    has_own_io: bool
    """True for memory of its own for inputs and outputs, where a history can stay between launches."""


def block_net(config: ModelConfig, settings: CompileSettings, layer: int, tokens: int) -> Net:
    """Return the stage of ``tokens`` new tokens of one layer."""
    name = f"block_cache_{layer}"
    text = _Block(Graph(name, WEIGHT_FILE), config, settings).text(tokens)
    return Net(name, tokens, settings.context, text, _mode(settings, settings.bits), has_own_io=True)


def head_net(config: ModelConfig, settings: CompileSettings) -> Net:
    """Return the final norm and the head of one row of states, with the outputs that were chosen.

    Shapes: (1, E) → logits (1, V); or token (1, 1); or the best logits (1, 64), falling, and their ids.
    """
    bits = {"w4": 4, "w8": 8, "f16": 16}[settings.head]
    graph = Graph(HEAD, WEIGHT_FILE)
    states = graph.input("states", (1, config.hidden_size))
    states = graph.reshape("row", states, (1, 1, config.hidden_size))
    normed = _norm(graph, FINAL_NORM, states, config.norm_eps)
    logits = _linear(graph, "head", normed, HEAD, _Form(config.vocabulary_size, bits, settings.dtype))
    logits = graph.reshape("logits", logits, (1, config.vocabulary_size))
    outputs = [logits]
    if settings.head_output == "token":
        outputs = [graph.top(("best_logit", "token"), logits, 1)[1]]
    elif settings.head_output == "sample":
        outputs = list(graph.top(("best_logits", "best_ids"), logits, SAMPLE_CANDIDATES))
    return Net(HEAD, 1, 0, graph.text(outputs), _mode(settings, bits), has_own_io=False)


def embedding_net(config: ModelConfig, settings: CompileSettings, tokens: int) -> Net:
    """Return the stage of ``tokens`` tokens of the embedding. Shapes: ids (1, T) → states (1, T, E)."""
    graph = Graph(EMBEDDING, WEIGHT_FILE)
    ids = graph.input("input_ids", (1, tokens), "si32")
    shape = (config.vocabulary_size, config.hidden_size)
    table = graph.weight(f"{EMBEDDING}.weight", shape, _ELEMENTS[settings.dtype])
    states = graph.gather("states", table, ids)
    return Net(EMBEDDING, tokens, 0, graph.text([states]), _mode(settings, 16), has_own_io=False)


@dataclass(frozen=True, slots=True)
class _Form:
    """The outputs of a linear, and how its weights are stored."""

    outputs: int
    bits: int
    dtype: Float


class _Block:
    """One layer, written into ``graph``."""

    def __init__(self, graph: Graph, config: ModelConfig, settings: CompileSettings) -> None:
        self.graph = graph
        self.config = config
        self.settings = settings
        self.history = settings.context

    def text(self, tokens: int) -> str:
        graph, config, history = self.graph, self.config, self.history
        old = (1, history, config.kv_heads, config.head_size)
        states = graph.input("input_states", (1, tokens, config.hidden_size))
        positions = graph.input("position_ids", (1, tokens), "si32")
        mask = graph.input("attention_mask", (1, 1, tokens, history + tokens))
        past = graph.input("history_k", old), graph.input("history_v", old)

        heads = self.heads(self.norm("input_layernorm", states), positions)
        mixed = self.attend(heads, past, mask, positions)
        output = self.linear("self_attn.o_proj", mixed, config.hidden_size)
        states = graph.add("attention_states", states, output)
        states = graph.add("output_states", states, self.mlp(self.norm("post_attention_layernorm", states)))
        return graph.text([states, heads[1], heads[2]])

    def heads(self, states: Value, positions: Value) -> Heads:
        """Project to queries, keys and values; RoPE turns the first two by their positions."""
        is_rope = self.config.position == "rope"
        queries = self.project("q", states, self.config.heads, "queries")
        keys = self.project("k", states, self.config.kv_heads, "unturned_k" if is_rope else "k")
        values = self.project("v", states, self.config.kv_heads, "v")
        if is_rope:
            queries, keys = self.turn(queries, keys, positions)
        return queries, keys, values

    def turn(self, queries: Value, keys: Value, positions: Value) -> tuple[Value, Value]:
        """Apply RoPE to new queries and keys; those of the history are turned already."""
        graph, shape = self.graph, (self.history, 1, self.config.head_size)
        sines, cosines = (
            graph.gather(name, graph.weight(f"{name}.weight", shape), positions) for name in (SINES, COSINES)
        )
        queries = graph.rotate("turned_queries", queries, sines, cosines)
        return queries, graph.rotate("k", keys, sines, cosines)

    def attend(self, heads: Heads, past: tuple[Value, Value], mask: Value, positions: Value) -> Value:
        """Attend to the history and to the new tokens themselves."""
        queries, keys, values = heads
        all_keys = self.graph.concatenate("keys", [past[0], keys], 1, is_in_place=True)
        all_values = self.graph.concatenate("values", [past[1], values], 1, is_in_place=True)
        if self.config.position == "alibi":
            return alibi.attend(self.graph, (queries, all_keys, all_values), mask, positions)
        return self.graph.attention("attention", queries, all_keys, all_values, mask)

    def project(self, letter: str, states: Value, heads: int, name: str) -> Value:
        size = self.config.head_size
        flat = self.linear(f"self_attn.{letter}_proj", states, heads * size)
        return self.graph.reshape(name, flat, (*states.shape[:-1], heads, size))

    def mlp(self, states: Value) -> Value:
        inner = self.config.intermediate_size
        gate = self.graph.silu("mlp.gate", self.linear("mlp.gate_proj", states, inner))
        gated = self.graph.multiply("mlp.gated", gate, self.linear("mlp.up_proj", states, inner))
        return self.linear("mlp.down_proj", gated, self.config.hidden_size)

    def norm(self, name: str, states: Value) -> Value:
        return _norm(self.graph, name, states, self.config.norm_eps)

    def linear(self, name: str, states: Value, outputs: int) -> Value:
        return _linear(
            self.graph, name, states, name, _Form(outputs, self.settings.bits, self.settings.dtype)
        )


def _norm(graph: Graph, name: str, states: Value, eps: float) -> Value:
    weight = graph.weight(f"{name}.weight", (*(1 for _ in states.shape[:-1]), states.shape[-1]))
    return graph.rms_norm(name, states, weight, eps)


def _linear(graph: Graph, name: str, states: Value, source: str, form: _Form) -> Value:
    """Multiply with the weights of ``source``."""
    inputs = states.shape[-1]
    if form.bits == 16:
        weight = graph.weight(f"{source}.weight", (inputs, form.outputs), _ELEMENTS[form.dtype])
        return graph.matmul(name, states, weight)
    groups = (form.outputs, inputs // GROUP_SIZE)
    packed = (
        graph.weight(f"{source}.qweight", (form.outputs, inputs * form.bits // 8), "ui8"),
        graph.weight(f"{source}.scales", groups),
        graph.weight(f"{source}.qzeros", groups, "ui8"),
    )
    return graph.packed_matmul(name, states, packed, form.bits)


def _mode(settings: CompileSettings, bits: int) -> str:
    suffix = _ELEMENTS[settings.dtype].upper()
    return suffix if bits == 16 else f"W{bits}{suffix}"
