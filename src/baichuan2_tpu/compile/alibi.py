"""Attention with ALiBi: every head adds its own slope times the distance to a key.

The compiler's fused attention takes one mask for all heads, so this one is written out. Two things to keep:

- Float16 counts to 2048 and positions reach 4095. So a position is held in two parts, a multiple of 64 and
  the rest: their differences are exact, and their sum is rounded only where a key is 2048 away.
- Bias and mask are added one after the other. Given their sum, the compiler (1.30.2) makes its fused
  attention of it all and applies the bias of the first head to every head, without a word.

Not here: the slopes (``config``), the rest of a block (``nets``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.compile.mlir import Graph, Value
from baichuan2_tpu.config import ModelConfig, alibi_slopes

__all__ = ["alibi_arrays", "attend"]

_STEP = 64
_PARTS = ("coarse", "fine")
_SLOPES = "alibi.slopes"


def alibi_arrays(config: ModelConfig, context: int) -> dict[str, NDArray[np.float32]]:
    """Return the slopes, and both parts of every position: as a table and as a row."""
    fine = np.arange(context, dtype=np.float32) % _STEP
    coarse = np.arange(context, dtype=np.float32) - fine
    slopes: NDArray[np.float32] = np.array(alibi_slopes(config.heads), np.float32)
    arrays: dict[str, NDArray[np.float32]] = {_SLOPES: slopes.reshape(1, 1, -1, 1)}
    for part, values in zip(_PARTS, (coarse, fine), strict=True):
        arrays[f"alibi.{part}.table"] = values.reshape(-1, 1)
        arrays[f"alibi.{part}.row"] = values.reshape(1, 1, 1, -1)
    return arrays


def attend(graph: Graph, heads: tuple[Value, Value, Value], mask: Value, positions: Value) -> Value:
    """Attend from new tokens to the history and to themselves.

    Shapes: ``heads`` are queries (1, T, H, D), keys and values (1, S + T, H, D); mask (1, 1, T, S + T),
    positions (1, T) → (1, T, H * D).
    """
    queries, keys, values = heads
    _, tokens, count, size = queries.shape
    columns = keys.shape[1]
    scores = graph.scale(
        "alibi.scores", _by_head(graph, "alibi.qk", queries, keys, is_right_transposed=True), size**-0.5
    )
    distances = graph.add(
        "alibi.distances", *(_differences(graph, part, positions, columns - tokens) for part in _PARTS)
    )
    slopes = graph.weight(_SLOPES, (1, 1, count, 1))
    scores = graph.add("alibi.biased", scores, graph.multiply("alibi.bias", distances, slopes))
    mask = graph.reshape("alibi.mask", mask, (1, tokens, 1, columns))
    weights = graph.softmax("alibi.weights", graph.add("alibi.masked", scores, mask))
    mixed = _by_head(graph, "alibi.mixed", weights, values, is_right_transposed=False)
    return graph.reshape("alibi.attention", mixed, (1, tokens, count * size))


def _by_head(graph: Graph, name: str, left: Value, right: Value, *, is_right_transposed: bool) -> Value:
    """Multiply for each head. Shapes: (1, T, H, J), (1, J, H, K) → (1, T, H, K); transposed, (1, K, H, J).

    The compiler turns these permutations into strides, as what lies between two products has this order too;
    with heads outside of tokens two of them are real copies (31 ms, not 23, for 256 tokens after 4096).
    """
    left = graph.permute(f"{name}.left", left, (0, 2, 1, 3))
    right = graph.permute(f"{name}.right", right, (0, 2, 3, 1) if is_right_transposed else (0, 2, 1, 3))
    return graph.permute(name, graph.matmul(f"{name}.product", left, right), (0, 2, 1, 3))


def _differences(graph: Graph, part: str, positions: Value, history: int) -> Value:
    """Return one part of the position of every key less that of every query. Shapes: (1, T, 1, S + T)."""
    name, tokens = f"alibi.{part}", positions.shape[1]
    new = graph.gather(f"{name}.new", graph.weight(f"{name}.table", (history, 1)), positions)
    old_keys = graph.weight(f"{name}.row", (1, 1, 1, history))
    new_keys = graph.reshape(f"{name}.new_keys", new, (1, 1, 1, tokens))
    keys = graph.concatenate(f"{name}.keys", [old_keys, new_keys], 3)
    return graph.subtract(
        f"{name}.differences", keys, graph.reshape(f"{name}.queries", new, (1, tokens, 1, 1))
    )
