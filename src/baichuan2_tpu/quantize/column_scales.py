"""Choose by how much each column of a linear is multiplied before it is rounded, and its input divided.

Outputs stay the same, but a group's columns share a step of rounding: where a column that gets large inputs
is multiplied, its error shrinks, and where one that gets small inputs is divided, the range of the group
shrinks. With steps D of the rows in a group and mean squares m of the inputs, the expected error of the
outputs is

    sum over rows of D^2  times  sum over columns of m / s^2        for scales s, and D depends on s

Its logarithm is lowered by a fixed point: at the least, a column's part in the first sum is its part in the
second. The range that gives D is smoothed to the norm of eighth powers, as a search of ranges clips a single
large weight.
Not here: the integers (``native/quantize/range_search.h``), folding scales into neighbours (``scale_layer``).
Source: Lin et al., "AWQ" (2023), where one power of the inputs' size is searched for a whole linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

__all__ = ["find_scales", "mean_squares", "sample_rows"]

Floats = NDArray[np.float32]

_ROWS = 512
"""Rows of weights that are looked at."""

_STEPS = 12
_POWER = 8
_LARGEST_STEP = np.float32(0.7)  # of the logarithm, in one step
_LARGEST = np.float32(3.5)  # of the logarithm: a scale of 33
_LEAST_SHARE = np.float32(1e-3)
"""Of the mean energy of a group's inputs: one that was never seen is not taken to be never used."""

_GROUPS_PER_TASK = 16


def mean_squares(inputs: Floats) -> Floats:
    """Return the mean square of every column. Shapes: (T, K) -> (K,)."""
    return np.einsum("tk,tk->k", inputs, inputs) / np.float32(max(1, len(inputs)))


def sample_rows(weights: Sequence[Floats]) -> Floats:
    """Return evenly spaced rows of linears, transposed. Shapes: each (N, K) -> (K, R)."""
    step = max(1, sum(map(len, weights)) // _ROWS)
    return np.ascontiguousarray(np.concatenate([rows[step // 2 :: step] for rows in weights]).T)


def find_scales(
    sample: Floats, energy: Floats, group_size: int, pool: Executor, *, owner: NDArray[np.intp] | None = None
) -> Floats:
    """Return the scales of the columns; those with the same ``owner`` have the same.

    Shapes: sample (K, R), energy (K,), owner (K,) -> (K,).
    """
    owner = np.arange(len(energy)) if owner is None else owner
    counts = np.bincount(owner)
    starts = np.arange(0, len(energy), group_size)
    lengths = np.diff(np.append(starts, len(energy)))
    energy = _floor_energy(energy, starts, lengths)
    chunks = [slice(first, first + _GROUPS_PER_TASK) for first in range(0, len(starts), _GROUPS_PER_TASK)]
    logs = np.zeros(len(counts), np.float32)
    for _ in range(_STEPS):
        scales = np.exp(logs)[owner]

        def column_steps(groups: slice, scales: Floats = scales) -> Floats:
            first, last = starts[groups][0], starts[groups][-1] + lengths[groups][-1]
            own = slice(first, last)
            return _steps(sample[own] * scales[own, None], energy[own] / scales[own] ** 2, lengths[groups])

        steps = np.concatenate(list(pool.map(column_steps, chunks)))
        logs += (np.bincount(owner, steps) / counts).astype(np.float32)
        np.clip(logs, -_LARGEST, _LARGEST, out=logs)
    return np.exp(logs)[owner]


def _floor_energy(energy: Floats, starts: NDArray[np.intp], lengths: NDArray[np.intp]) -> Floats:
    """Raise what is next to nothing, or zero, to a share of its group's mean."""
    means = np.repeat(np.add.reduceat(energy, starts) / lengths, lengths)
    return np.maximum(energy, _LEAST_SHARE * means + np.finfo(np.float32).tiny).astype(np.float32)


def _steps(weights: Floats, energy: Floats, lengths: NDArray[np.intp]) -> Floats:
    """Return by how much the logarithm of every scale changes now. Shapes: (K, R), (K,), (G,) -> (K,)."""
    starts = np.cumsum(lengths) - lengths
    tops = np.maximum.reduceat(np.abs(weights).max(axis=1), starts)
    powers = weights / np.repeat(tops + np.finfo(np.float32).tiny, lengths)[:, None]
    for _ in range(_POWER.bit_length() - 1):
        np.square(powers, out=powers)
    sums = np.add.reduceat(powers, starts, axis=0) + np.float32(1e-30)
    rows = sums ** np.float32(2 / _POWER - 1)  # of every row and group
    parts = np.empty(len(weights), np.float32)
    for group, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        own = slice(start, start + length)
        parts[own] = powers[own] @ rows[group]
        parts[own] /= parts[own].sum() + np.float32(1e-30)
    wished = energy / np.repeat(np.add.reduceat(energy, starts), lengths)
    change = np.log(wished / np.maximum(parts, np.float32(1e-12))) / (_POWER + 2)
    return np.clip(change, -_LARGEST_STEP, _LARGEST_STEP).astype(np.float32)
