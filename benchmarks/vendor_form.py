"""The nets of a layer as the vendor builds them, for comparison with our estimates.

A layer is two nets: "block" computes all P = S positions of any prompt, "block_cache" one token after a
history of S. Attention is written out, and memory is shared between nets (addr_mode basic). One thing
favours it here: Q, K and V need not be cut out of one product. Through the vendor's own ONNX route the
compiler's estimate of these nets at S = 512 and 4 bits was 17.5 and 2.45 ms.
Not here: the head, which is ours with floats and an arg-max.
Source: tools/export_onnx.py and modeling_baichuan.py of the vendor's sample (sophon-demo, Baichuan2).
"""

from __future__ import annotations

from baichuan2_tpu.compile.mlir import Graph, Value
from baichuan2_tpu.compile.nets import COSINES, SINES, WEIGHT_FILE, Net
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.manifest import Stage

__all__ = ["vendor_block"]

_GROUP_SIZE = 64


def vendor_block(config: ModelConfig, bits: int, context: int, *, has_history: bool) -> Net:
    """Return the net of one layer: of a whole prompt, or of one token after a history."""
    name = "block_cache_0" if has_history else "block_0"
    tokens = 1 if has_history else context
    text = _VendorBlock(name, config, bits, context).text(tokens, has_history=has_history)
    stage = Stage(tokens, context if has_history else 0)
    return Net(name, stage, text, f"W{bits}F16", _GROUP_SIZE, has_own_io=False)


class _VendorBlock:
    """One layer, written into a graph."""

    def __init__(self, name: str, config: ModelConfig, bits: int, context: int) -> None:
        self.graph = Graph(name, WEIGHT_FILE)
        self.config = config
        self.bits = bits
        self.context = context

    def text(self, tokens: int, *, has_history: bool) -> str:
        graph, config = self.graph, self.config
        columns = self.context + 1 if has_history else tokens
        states = graph.input("input_states", (1, tokens, config.hidden_size))
        positions = graph.input("position_ids", (1, tokens), "si32")
        mask = graph.input("attention_mask", (1, 1, tokens, columns))
        queries, keys, values = self.heads(self.norm("input_layernorm", states), positions)
        all_keys, all_values = keys, values
        if has_history:
            old = (1, self.context, config.heads, config.head_size)
            old_keys, old_values = graph.input("history_k", old), graph.input("history_v", old)
            all_keys = graph.concatenate("keys", [old_keys, keys], 1)
            all_values = graph.concatenate("values", [old_values, values], 1)
        mixed = self.attend(queries, all_keys, all_values, mask)
        states = graph.add(
            "attention_states", states, self.linear("self_attn.o_proj", mixed, config.hidden_size)
        )
        states = graph.add("output_states", states, self.mlp(self.norm("post_attention_layernorm", states)))
        return graph.text([states, keys, values])

    def heads(self, states: Value, positions: Value) -> list[Value]:
        """Return queries, keys and values, the first two rotated. Shapes: (1, T, H, D) each."""
        graph, config = self.graph, self.config
        shape = (1, states.shape[1], config.heads, config.head_size)
        queries, keys, values = (
            graph.reshape(name, self.linear(f"self_attn.{letter}_proj", states, config.hidden_size), shape)
            for letter, name in (("q", "queries"), ("k", "unturned_k"), ("v", "v"))
        )
        sines, cosines = (
            graph.gather(name, graph.weight(f"{name}.weight", (self.context, 1, config.head_size)), positions)
            for name in (SINES, COSINES)
        )
        rotated = graph.rotate("turned_queries", queries, sines, cosines)
        return [rotated, graph.rotate("k", keys, sines, cosines), values]

    def attend(self, queries: Value, keys: Value, values: Value, mask: Value) -> Value:
        graph, config = self.graph, self.config
        queries = graph.permute("queries_by_head", queries, (0, 2, 1, 3))
        keys = graph.permute("keys_by_head", keys, (0, 2, 3, 1))
        scores = graph.scale("scores", graph.matmul("products", queries, keys), config.head_size**-0.5)
        shares = graph.softmax("shares", graph.add("masked", scores, mask))
        mixed = graph.matmul("mixed_by_head", shares, graph.permute("values_by_head", values, (0, 2, 1, 3)))
        mixed = graph.permute("mixed_by_token", mixed, (0, 2, 1, 3))
        return graph.reshape("mixed", mixed, (1, mixed.shape[1], config.hidden_size))

    def mlp(self, states: Value) -> Value:
        inner = self.config.intermediate_size
        gate = self.graph.silu("mlp.gate", self.linear("mlp.gate_proj", states, inner))
        gated = self.graph.multiply("mlp.gated", gate, self.linear("mlp.up_proj", states, inner))
        return self.linear("mlp.down_proj", gated, self.config.hidden_size)

    def norm(self, name: str, states: Value) -> Value:
        weight = self.graph.weight(f"{name}.weight", (1, 1, self.config.hidden_size))
        return self.graph.rms_norm(name, states, weight, self.config.norm_eps)

    def linear(self, name: str, states: Value, outputs: int) -> Value:
        inputs, graph = states.shape[-1], self.graph
        groups = (outputs, inputs // _GROUP_SIZE)
        packed = (
            graph.weight(f"{name}.qweight", (outputs, inputs * self.bits // 8), "ui8"),
            graph.weight(f"{name}.scales", groups),
            graph.weight(f"{name}.qzeros", groups, "ui8"),
        )
        return graph.packed_matmul(name, states, packed, self.bits)
