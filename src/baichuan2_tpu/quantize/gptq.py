"""Choose the integers of one linear so that its outputs, not its weights, change least.

With inputs X (T, K), the squared error of an output is e H e^T, where e is what rounding changed in its row
of weights and H = X^T X. What X itself lacks of the float model's inputs, because of what was rounded before,
moves the weights that are aimed at. Ranges are searched first, each column counting by what its error costs
once the columns behind it have made up for it; then columns are rounded in the order of their energy, each
one's error corrected in those behind (GPTQ with static groups, in the form of LDLQ, which needs no inverse of
H). Going over single integers and scales afterwards, to where the error is least, took the demo's perplexity
from 15.37 to 15.34, for 2.7 times the time: it is not done.
Not here: where inputs come from (``gptq_layer``), rounding one block (``native/quantize/gptq_rounding.h``).
Source: Frantar et al., "GPTQ" (2022); Chee et al., "QuIP" (2023), theorem 6, on LDLQ; Li et al., "GPTAQ"
(2025), on aiming at the float model's outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from baichuan2_tpu import _native
from baichuan2_tpu.checkpoint.packing import pack_linear
from baichuan2_tpu.checkpoint.weights import PackedLinear

__all__ = ["Curvature", "Rounded", "join_rows", "round_linear", "split_rows"]

Floats = NDArray[np.float32]

_DAMPING = 0.1
"""Share of a column's mean energy that is added to all: the inputs seen are not all there are. With 4096
tokens of the demo model, the squared error of outputs for another text was 17 % larger at GPTQ's 0.01."""

_AIM = np.float32(0.5)
"""How far weights are moved to where the inputs ask for the float model's outputs: all the way fits the text
that was seen. The demo's perplexity on another text (float: 14.04) was 15.86 at 0, 15.27 here, 15.37 at 1,
before columns were scaled."""

_BLOCK_COLUMNS = 128
"""Columns between two corrections of all that follow; only the speed depends on it."""

_ROWS_PER_TASK = 256


@dataclass(frozen=True, slots=True)
class Curvature:
    """What the inputs of a linear say about its K columns.

    With U = ``feedback`` and D the squares of ``pivots``, the damped Hessian is U D U^T, in ``order``.
    Shapes: ``order`` (K,), the columns as they are rounded; ``feedback`` (K, K), in that order, what a
    column's error asks of each one behind it; ``pivots`` (K,), in that order; ``importance`` (K,): remaining
    cost of a column's error after feedback. ``lack`` (K, K): (X_float - X)^T X.
    """

    order: NDArray[np.intp]
    feedback: Floats
    pivots: Floats
    importance: Floats
    lack: Floats

    @classmethod
    def of_inputs(cls, gram: Floats, lack: Floats) -> Self:
        """Decompose ``X^T X``; ``lack`` is ``(F - X)^T X`` for inputs F of the float model. Shapes: (K, K).

        Both must be finite.
        Side effect: ``gram`` becomes the Hessian. A 7B's widest one takes 0.5 GB, and 1 GB more on the way.
        """
        energy = np.diagonal(gram).copy()
        # Without any energy every rounding is as good: then the damping alone is left.
        gram[np.diag_indices_from(gram)] += _DAMPING * energy.mean() or 1.0
        order = np.argsort(-energy, kind="stable")
        factor = np.take(np.take(gram, order, axis=0), order, axis=1)
        _decompose(factor)
        pivots = np.diagonal(factor).copy()
        factor /= pivots
        importance = np.empty(len(order), np.float32)
        importance[order] = np.square(pivots) / np.square(pivots).mean()
        return cls(order, factor, pivots, importance, lack)

    def targets(self, weights: Floats) -> Floats:
        """Return weights that come nearer to the float model's outputs. Shapes: (N, K) -> (N, K)."""
        if len(weights) < len(self.order):
            missing = self._divide(weights @ self.lack)
        else:
            missing = weights @ self._divide(self.lack)
        missing *= _AIM
        missing += weights
        return missing

    def _divide(self, rows: Floats) -> Floats:
        """Multiply by the inverse of the Hessian, block by block. Shapes: (N, K) -> (N, K)."""
        found = np.take(rows, self.order, axis=1)
        blocks = [slice(start, start + _BLOCK_COLUMNS) for start in range(0, len(self.order), _BLOCK_COLUMNS)]
        inverses = [np.linalg.inv(self.feedback[block, block]) for block in blocks]
        for block, inverse in zip(reversed(blocks), reversed(inverses), strict=True):
            found[:, block] -= found[:, block.stop :] @ self.feedback[block, block.stop :].T
            found[:, block] = found[:, block] @ inverse.T
        found /= np.square(self.pivots)
        for block, inverse in zip(blocks, inverses, strict=True):
            found[:, block] -= found[:, : block.start] @ self.feedback[: block.start, block]
            found[:, block] = found[:, block] @ inverse
        quotient = np.empty_like(found)
        quotient[:, self.order] = found
        return quotient


def _decompose(matrix: Floats) -> None:
    """Put R, upper triangular with R R^T = ``matrix``, in its place. Shapes: (K, K).

    By blocks of columns from the last to the first, as products of matrices: at K = 4096 one core takes 0.4
    s, and 1.2 s or more with numpy's own.
    """
    for start in reversed(range(0, len(matrix), _BLOCK_COLUMNS)):
        stop = min(start + _BLOCK_COLUMNS, len(matrix))
        block = slice(start, stop)
        panel = matrix[:stop, block] - matrix[:stop, stop:] @ matrix[block, stop:].T
        # The usual factor is lower triangular: both axes are reversed.
        own = np.linalg.cholesky(panel[block][::-1, ::-1].astype(np.float64))[::-1, ::-1]
        matrix[:start, block] = panel[:start] @ np.linalg.inv(own).T.astype(np.float32)
        matrix[block, block] = own
        matrix[stop:, block] = 0


@dataclass(frozen=True, slots=True)
class Rounded:
    """One linear in integers; its scales are numbers of float16. Shapes: (N, K), twice (N, G)."""

    integers: NDArray[np.uint8]
    scales: Floats
    zeros: NDArray[np.uint8]
    group_size: int

    def weights(self) -> Floats:
        """Return the float weights that the integers stand for. Shapes: (N, K)."""
        columns = self.integers.shape[1]
        wide_zeros = np.repeat(self.zeros, self.group_size, axis=1)[:, :columns]
        wide_scales = np.repeat(self.scales, self.group_size, axis=1)[:, :columns]
        return (self.integers.astype(np.float32) - wide_zeros) * wide_scales

    def packed(self, bits: int) -> PackedLinear:
        """Return it in GPTQ form."""
        scales = self.scales.astype(np.float16)
        return pack_linear(self.integers, scales, self.zeros, bits=bits, group_size=self.group_size)


def split_rows(rounded: Rounded, counts: Sequence[int]) -> list[Rounded]:
    """Return the linears whose rows were rounded together, ``counts`` rows each."""
    stops = np.cumsum(counts)
    return [
        replace(
            rounded,
            integers=rounded.integers[stop - count : stop],
            scales=rounded.scales[stop - count : stop],
            zeros=rounded.zeros[stop - count : stop],
        )
        for stop, count in zip(stops, counts, strict=True)
    ]


def join_rows(parts: Sequence[Rounded]) -> Rounded:
    """Return one linear whose rows were rounded in parts."""
    return Rounded(
        np.concatenate([part.integers for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate([part.zeros for part in parts]),
        parts[0].group_size,
    )


def round_linear(
    weights: Floats, curvature: Curvature, *, bits: int, group_size: int, pool: Executor
) -> Rounded:
    """Choose the integers of one linear, or of some of its rows. Shapes: (N, K).

    The result does not depend on the number of threads in ``pool``.
    """
    weights = curvature.targets(weights)
    ranges = _map_rows(
        pool,
        lambda rows: _native.quantize_groups(weights[rows], bits, group_size, curvature.importance),
        len(weights),
    )
    scales = ranges[1].view(np.float16).astype(np.float32)
    start = Rounded(ranges[0], scales, ranges[2], group_size)
    return _round_in_order(weights, start, curvature, bits, pool)


def _map_rows(
    pool: Executor, work: Callable[[slice], tuple[NDArray[Any], ...]], count: int
) -> list[NDArray[Any]]:
    """Join the arrays that ``work`` returns for slices of all rows, which several threads take."""
    slices = [slice(start, start + _ROWS_PER_TASK) for start in range(0, count, _ROWS_PER_TASK)]
    return [np.concatenate(parts) for parts in zip(*pool.map(work, slices), strict=True)]


def _round_in_order(
    weights: Floats, ranges: Rounded, curvature: Curvature, bits: int, pool: Executor
) -> Rounded:
    """Round columns in the order of their energy; each one's error is corrected in those behind."""
    count, columns = weights.shape
    integers = np.empty((count, columns), np.uint8)
    errors = np.empty((count, columns), np.float32)  # in the order of rounding
    for start in range(0, columns, _BLOCK_COLUMNS):
        block = slice(start, start + _BLOCK_COLUMNS)
        own = curvature.order[block]
        targets = np.ascontiguousarray(weights[:, own])
        values = errors[:, :start] @ curvature.feedback[:start, block]
        values += targets
        groups = (own // ranges.group_size).astype(np.int32)
        feedback = np.ascontiguousarray(curvature.feedback[block, block])
        integers[:, own], errors[:, block] = _round_block(
            _Block(values, targets, feedback, groups), ranges, bits, pool
        )
    return replace(ranges, integers=integers)


@dataclass(frozen=True, slots=True)
class _Block:
    """Some columns to be rounded in order. Shapes: (N, B), (N, B), (B, B), (B,)."""

    values: Floats
    targets: Floats
    feedback: Floats
    groups: NDArray[np.int32]


def _round_block(block: _Block, ranges: Rounded, bits: int, pool: Executor) -> list[NDArray[Any]]:
    """Return the integers of a block, and what each lacks of its target. Shapes: (N, B) both."""

    def work(rows: slice) -> tuple[NDArray[np.uint8], Floats]:
        return _native.round_with_feedback(
            block.values[rows],
            block.targets[rows],
            block.feedback,
            ranges.scales[rows],
            ranges.zeros[rows],
            block.groups,
            bits,
        )

    return _map_rows(pool, work, len(block.values))
