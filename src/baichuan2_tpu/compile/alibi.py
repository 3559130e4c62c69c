"""Attention with ALiBi: every head adds its own slope times the distance to a key.

The compiler's fused attention takes one mask for all heads, so this one is written out. Two things to keep:

- Float16 counts to 2048 and positions reach 4095. So a position is held in two parts, a multiple of 64 and
  the rest: their differences are exact, and their sum is rounded only where a key is 2048 away.
- Bias and mask are added one after the other. Given their sum, the compiler (1.30.2) makes its fused
  attention of it all and applies the bias of the first head to every head, without a word.

Not here: the slopes (``config``), the rest of a block (``nets``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.compile.mlir import Graph, Value
from baichuan2_tpu.config import ModelConfig, alibi_slopes

__all__ = ["Positions", "alibi_arrays", "attend", "compare_positions"]

_STEP = 64
_PARTS = ("coarse", "fine")
_SLOPES = "alibi.slopes"


def alibi_arrays(config: ModelConfig, context: int) -> dict[str, NDArray[np.float32]]:
    """Return the slopes, and a table with each part of every position. Shapes: (1, 1, H, 1), (S, 1)."""
    fine = np.arange(context, dtype=np.float32) % _STEP
    coarse = np.arange(context, dtype=np.float32) - fine
    slopes: NDArray[np.float32] = np.array(alibi_slopes(config.heads), np.float32)
    arrays: dict[str, NDArray[np.float32]] = {_SLOPES: slopes.reshape(1, 1, -1, 1)}
    for part, values in zip(_PARTS, (coarse, fine), strict=True):
        arrays[f"alibi.{part}.table"] = values.reshape(-1, 1)
    return arrays


@dataclass(frozen=True, slots=True)
class Positions:
    """What all layers of a net need to know of positions, and the mask beside it.

    Shapes: ``distances`` (1, T, 1, S + T), the position of every key less that of every query; ``mask`` the
    same; ``slopes`` (1, 1, H, 1).
    """

    distances: Value
    slopes: Value
    mask: Value


def compare_positions(
    graph: Graph, heads: int, context: int, positions: tuple[Value, Value], mask: Value
) -> Positions:
    """Compare the positions of all keys with those of all queries; each must be below ``context``.

    The mask is reshaped here, once for all layers: the compiler leaves an input of several consumers that
    reshape it in float32.
    Shapes: ``positions`` of the history (1, S) and of the new tokens (1, T), mask (1, 1, T, S + T).
    """
    parts = [_differences(graph, part, positions, context) for part in _PARTS]
    slopes = graph.weight(_SLOPES, (1, 1, heads, 1))
    _, _, tokens, columns = mask.shape
    mask = graph.reshape("alibi.mask", mask, (1, tokens, 1, columns))
    return Positions(graph.add("alibi.distances", *parts), slopes, mask)


def attend(graph: Graph, prefix: str, heads: tuple[Value, Value, Value], positions: Positions) -> Value:
    """Attend from new tokens to the history and to themselves; ``prefix`` is put before all names.

    Shapes: ``heads`` are queries (1, T, H, D), keys and values (1, S + T, H, D) → (1, T, H * D).
    """
    queries, keys, values = heads
    _, tokens, count, size = queries.shape
    name = f"{prefix}alibi."
    products = _by_head(graph, f"{name}qk", queries, keys, is_right_transposed=True)
    scores = graph.scale(f"{name}scores", products, size**-0.5)
    bias = graph.multiply(f"{name}bias", positions.distances, positions.slopes)
    scores = graph.add(f"{name}biased", scores, bias)
    weights = graph.softmax(f"{name}weights", graph.add(f"{name}masked", scores, positions.mask))
    mixed = _by_head(graph, f"{name}mixed", weights, values, is_right_transposed=False)
    return graph.reshape(f"{name}attention", mixed, (1, tokens, count * size))


def _by_head(graph: Graph, name: str, left: Value, right: Value, *, is_right_transposed: bool) -> Value:
    """Multiply for each head. Shapes: (1, T, H, J), (1, J, H, K) → (1, T, H, K); transposed, (1, K, H, J).

    The compiler turns these permutations into strides, as what lies between two products has this order too;
    with heads outside of tokens two of them are real copies (31 ms, not 23, for 256 tokens after 4096).
    """
    left = graph.permute(f"{name}.left", left, (0, 2, 1, 3))
    right = graph.permute(f"{name}.right", right, (0, 2, 3, 1) if is_right_transposed else (0, 2, 1, 3))
    return graph.permute(name, graph.matmul(f"{name}.product", left, right), (0, 2, 1, 3))


def _differences(graph: Graph, part: str, positions: tuple[Value, Value], context: int) -> Value:
    """Return one part of the position of every key less that of every query. Shapes: (1, T, 1, S + T)."""
    old, new = positions
    name, history, tokens = f"alibi.{part}", old.shape[1], new.shape[1]
    table = graph.weight(f"{name}.table", (context, 1))
    queries = graph.gather(f"{name}.new", table, new)
    keys = graph.concatenate(
        f"{name}.keys",
        [
            graph.reshape(f"{name}.old_keys", graph.gather(f"{name}.old", table, old), (1, 1, 1, history)),
            graph.reshape(f"{name}.new_keys", queries, (1, 1, 1, tokens)),
        ],
        3,
    )
    return graph.subtract(
        f"{name}.differences", keys, graph.reshape(f"{name}.queries", queries, (1, tokens, 1, 1))
    )
