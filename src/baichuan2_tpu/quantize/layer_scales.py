"""The scales of one layer's columns, and what is divided so that the model stays the same.

The scales of q, k and v divide the weights of the norm before them, those of gate and up the second norm's.
Those of o divide the rows of v, with the same scale for all query heads that share a head of v; those of down
divide the rows of up. Nothing is computed in use that was not computed before.
Not here: choosing the scales of one linear (``column_scales``), the integers (``scale_layer``,
``gptq_layer``).
Source: Lin et al., "AWQ" (2023), on what scales can be folded into.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import (
    ATTENTION_NORM,
    ATTENTION_OUTPUT,
    DOWN,
    GATE,
    MLP_NORM,
    QKV,
    UP,
    layer_linears,
    layer_prefix,
)
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize.column_scales import find_scales, mean_squares, sample_rows
from baichuan2_tpu.quantize.linear import convert_array
from baichuan2_tpu.reference.float_model import attend
from baichuan2_tpu.reference.operations import rms_norm, swiglu

__all__ = ["LayerScales", "find_layer_scales"]

Floats = NDArray[np.float32]

_LIMIT = np.float32(np.finfo(np.float16).max)


@dataclass(frozen=True, slots=True)
class LayerScales:
    """By name: what columns of linears are multiplied by, what rows and norms are divided by.

    ``importance`` is the mean square of every column's input after the division, by the linear's name.
    """

    columns: dict[str, Floats] = field(default_factory=dict[str, Floats])
    rows: dict[str, Floats] = field(default_factory=dict[str, Floats])
    norms: dict[str, Floats] = field(default_factory=dict[str, Floats])
    importance: dict[str, Floats] = field(default_factory=dict[str, Floats])

    def read_linear(self, checkpoint: FloatCheckpoint, name: str, shape: tuple[int, int]) -> Floats:
        """Return the scaled weights of a linear. Shapes: -> (N, K).

        Raises: CheckpointError for a weight that is not allowed.
        """
        weights = _read_weights(checkpoint, name, shape)
        if name in self.columns:
            weights *= self.columns[name]
        if name in self.rows:
            weights /= self.rows[name][:, None]
        return weights

    def read_norm(self, checkpoint: FloatCheckpoint, name: str) -> Floats:
        """Return the weights of a norm, divided. Shapes: -> (E,)."""
        weights = checkpoint.read(name)
        return weights / self.norms[name] if name in self.norms else weights


class _Finder:
    """Finds the scales of the linears of one layer, one set of inputs after another."""

    def __init__(self, checkpoint: FloatCheckpoint, group_size: int, pool: Executor) -> None:
        self.scales = LayerScales()
        self._checkpoint = checkpoint
        self._group_size = group_size
        self._pool = pool

    def find(
        self,
        linears: dict[str, Floats],
        inputs: Floats,
        owner: NDArray[np.intp] | None = None,
        source: Floats | None = None,
    ) -> Floats:
        """Choose and keep the scales of linears that share their ``inputs``; return them. Shapes: -> (K,).

        ``source`` are the weights whose rows are divided, one for each ``owner``.
        """
        names, weights = list(linears), list(linears.values())
        with np.errstate(over="ignore", invalid="ignore"):  # checked below
            energy = mean_squares(inputs.reshape(-1, inputs.shape[-1]))
        if not np.isfinite(energy).all():
            raise CheckpointError(
                f"{self._checkpoint.path}: the inputs of {names[0]} are not finite on the calibration text; "
                "fetch the checkpoint again, or use --method search"
            )
        scales = find_scales(sample_rows(weights), energy, self._group_size, self._pool, owner=owner)
        if not _fits(scales, weights, owner, source):  # weights that float16 only just holds
            scales = np.ones_like(scales)
        importance: Floats = np.divide(energy, np.square(scales), dtype=np.float32)
        importance /= max(float(importance.mean()), float(np.finfo(np.float32).tiny))
        self.scales.columns.update(dict.fromkeys(names, scales))
        self.scales.importance.update(dict.fromkeys(names, importance))
        return scales


class _Layer:
    """The float forward pass of one layer, which stops at every set of inputs to choose scales."""

    def __init__(self, checkpoint: FloatCheckpoint, layer: int, finder: _Finder) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._prefix = layer_prefix(layer)
        self._shapes = layer_linears(checkpoint.config, layer)
        self._finder = finder

    def attention(self, states: Floats) -> None:
        """Go through the attention. Shapes: (W, T, E)."""
        inputs, projections = self._normalize(ATTENTION_NORM, states), self._read(*QKV)
        self._finder.scales.norms[f"{self._prefix}{ATTENTION_NORM}"] = self._finder.find(projections, inputs)
        weights = list(projections.values())
        mixed = np.empty((*states.shape[:2], len(weights[0])), np.float32)
        for place, window in enumerate(inputs):
            mixed[place] = attend(self._config, *(window @ rows.T for rows in weights))
        output, owner = self._read(ATTENTION_OUTPUT), _value_owner(self._config)
        scales = self._finder.find(output, mixed, owner, weights[-1])
        self._finder.scales.rows[f"{self._prefix}{QKV[-1]}"] = _scales_of_owners(scales, owner)
        _add_products(states, mixed, output)

    def mlp(self, states: Floats) -> None:
        """Go through the MLP. Shapes: (W, T, E)."""
        inputs, projections = self._normalize(MLP_NORM, states), self._read(GATE, UP)
        self._finder.scales.norms[f"{self._prefix}{MLP_NORM}"] = self._finder.find(projections, inputs)
        gate, up = projections.values()
        inner = swiglu(inputs @ gate.T, inputs @ up.T)
        down, owner = self._read(DOWN), np.arange(len(up))
        self._finder.scales.rows[f"{self._prefix}{UP}"] = self._finder.find(down, inner, owner, up)
        _add_products(states, inner, down)

    def _normalize(self, part: str, states: Floats) -> Floats:
        weight = self._checkpoint.read(f"{self._prefix}{part}")
        return rms_norm(states, weight, self._config.norm_eps)

    def _read(self, *parts: str) -> dict[str, Floats]:
        names = [f"{self._prefix}{part}" for part in parts]
        return {name: _read_weights(self._checkpoint, name, self._shapes[name]) for name in names}


def find_layer_scales(
    checkpoint: FloatCheckpoint, layer: int, states: Floats, *, group_size: int, pool: Executor
) -> LayerScales:
    """Choose the scales of one layer for the states of the float model. Shapes: states (W, T, E).

    Side effect: ``states`` become those behind the layer.
    Raises: CheckpointError for a weight that is not allowed, or inputs that are not finite.
    """
    finder = _Finder(checkpoint, group_size, pool)
    own = _Layer(checkpoint, layer, finder)
    own.attention(states)
    own.mlp(states)
    return finder.scales


def _read_weights(checkpoint: FloatCheckpoint, name: str, shape: tuple[int, int]) -> Floats:
    return convert_array(checkpoint, name, shape, np.float32).astype(np.float32, copy=False)


def _value_owner(config: ModelConfig) -> NDArray[np.intp]:
    """Return for every input of o the row of v that it is mixed from. Shapes: -> (H * D,)."""
    rows = np.arange(config.kv_heads * config.head_size).reshape(config.kv_heads, config.head_size)
    return np.repeat(rows, config.heads // config.kv_heads, axis=0).reshape(-1)


def _scales_of_owners(scales: Floats, owner: NDArray[np.intp]) -> Floats:
    """Return the scale that the columns of each owner share. Shapes: (K,), (K,) -> (P,)."""
    shared = np.ones(int(owner.max()) + 1, np.float32)
    shared[owner] = scales
    return shared


def _fits(
    scales: Floats, weights: Sequence[Floats], owner: NDArray[np.intp] | None, source: Floats | None
) -> bool:
    """Tell whether scaled columns, and divided rows before them, are numbers of float16."""
    largest = np.max([np.abs(rows).max(axis=0) for rows in weights], axis=0) * scales
    if source is not None and owner is not None:
        largest = np.append(largest, np.abs(source).max(axis=1) / _scales_of_owners(scales, owner))
    return bool((largest <= _LIMIT).all())


def _add_products(states: Floats, inputs: Floats, weights: dict[str, Floats]) -> None:
    """Add the outputs of the one linear in ``weights`` to the states. Shapes: (W, T, E), (W, T, K)."""
    (matrix,) = weights.values()
    states += inputs @ matrix.T
