"""The operations of a decoder in numpy, in whatever float type their inputs have.

Not here: a whole forward pass (``float_model``, ``layer``).
Source: ``modeling_baichuan.py`` of Baichuan2-7B (RMSNorm, SwiGLU, RoPE in halves).
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["relative_error", "rms_norm", "rotate", "softmax", "swiglu"]

_Float = TypeVar("_Float", np.float32, np.float64)


def rms_norm(states: NDArray[_Float], weight: NDArray[_Float], eps: float) -> NDArray[_Float]:
    """Divide by the root of the mean square. Shapes: (..., E), (E,) -> (..., E)."""
    mean_square = np.square(states).mean(axis=-1, keepdims=True)
    return states / np.sqrt(mean_square + states.dtype.type(eps)) * weight


def swiglu(gate: NDArray[_Float], up: NDArray[_Float]) -> NDArray[_Float]:
    """Return ``silu(gate) * up``."""
    # Written with tanh, exp cannot overflow.
    half: NDArray[_Float] = np.multiply(gate, 0.5)
    silu: NDArray[_Float] = np.multiply(half, 1 + np.tanh(half))
    return np.multiply(silu, up)


def rotate(heads: NDArray[_Float], cosines: NDArray[_Float], sines: NDArray[_Float]) -> NDArray[_Float]:
    """Turn the first half of every head against the second.

    Shapes: heads (..., D); cosines and sines of every pair (..., D / 2), which broadcast.
    """
    low, high = np.split(heads, 2, axis=-1)
    turned = np.empty_like(heads)
    turned[..., : low.shape[-1]] = low * cosines - high * sines
    turned[..., low.shape[-1] :] = high * cosines + low * sines
    return turned


def softmax(scores: NDArray[_Float]) -> NDArray[_Float]:
    """Turn scores into shares of the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores


def relative_error(values: NDArray[Any], expected: NDArray[np.float64]) -> float:
    """Return the norm of the difference over that of what is expected; infinite for what is not finite."""
    if not np.all(np.isfinite(values)):
        return float("inf")
    return float(np.linalg.norm((values - expected).reshape(-1)) / np.linalg.norm(expected.reshape(-1)))
