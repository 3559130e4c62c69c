"""One layer becomes integers, its linears in the order in which a forward pass meets them.

Columns are scaled first, as for ``scale``. Each linear is rounded for the inputs that the quantised linears
before it give it, of this layer and of those below, and for the outputs that the float model would have
there, so that it makes up for some of what they lost. Both models' states go along: P = 2 paths, the
quantised one first.
Not here: choosing the integers (``gptq``) and scales (``layer_scales``), files and resuming
(``calibrated_run``).
Source: "true sequential" quantising of Frantar et al., "GPTQ" (2022); Li et al., "GPTAQ" (2025).
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import (
    ATTENTION_NORM,
    ATTENTION_OUTPUT,
    DOWN,
    FINAL_NORM,
    GATE,
    HEAD,
    MLP_NORM,
    QKV,
    UP,
    layer_linears,
    layer_prefix,
)
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize.gptq import Curvature, join_rows, round_linear, split_rows
from baichuan2_tpu.quantize.layer_scales import LayerScales, find_layer_scales
from baichuan2_tpu.quantize.linear import convert_array
from baichuan2_tpu.quantize.quantized_layer import QuantizedLayer
from baichuan2_tpu.reference.float_model import attend
from baichuan2_tpu.reference.operations import rms_norm, swiglu

__all__ = ["CalibratedLayer", "quantize_head"]

Floats = NDArray[np.float32]

_SCALE_WINDOWS = 4
"""Windows that the scales of columns are chosen for: the size of inputs needs little text."""

_HEAD_ROWS = 8192  # of a 7B's 125,696: what the search holds beside the weights stays small


class CalibratedLayer:
    """Quantises one layer of a checkpoint.

    ``scratch`` names a file for inputs of all windows, which may be larger than the memory.
    """

    def __init__(
        self,
        checkpoint: FloatCheckpoint,
        quantization: QuantizationConfig,
        layer: int,
        *,
        scratch: Path,
        pool: Executor,
    ) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config
        self._quantization = quantization
        self._layer = layer
        self._prefix = layer_prefix(layer)
        self._scales = LayerScales()
        self._shapes = layer_linears(checkpoint.config, layer)
        self._scratch = scratch
        self._pool = pool
        self._packed: dict[str, PackedLinear] = {}

    def run(self, states: Floats) -> QuantizedLayer:
        """Return the packed linears by name. Shapes: states (W, P, T, E).

        Side effect: ``states`` become those behind the quantised layer.
        Raises: CheckpointError for a weight that is not allowed, or inputs that are not finite.
        """
        self._scales = find_layer_scales(
            self._checkpoint,
            self._layer,
            states[:_SCALE_WINDOWS, -1].copy(),
            group_size=self._quantization.group_size,
            pool=self._pool,
        )
        self._attention(states)
        self._mlp(states)
        self._scratch.unlink()
        norms = {name: self._scales.read_norm(self._checkpoint, name) for name in self._scales.norms}
        return QuantizedLayer(self._packed, norms)

    def _attention(self, states: Floats) -> None:
        projections = self._quantize(QKV, self._normalize(ATTENTION_NORM, states))
        mixed = self._scratch_array(states, projections[0].shape[1])
        for place, inputs in enumerate(self._normalize(ATTENTION_NORM, states)):
            for path, own in enumerate(inputs):
                mixed[place, path] = attend(self._config, *(own @ weights[path].T for weights in projections))
        (output,) = self._quantize([ATTENTION_OUTPUT], mixed)
        _add_products(states, mixed, output)

    def _mlp(self, states: Floats) -> None:
        gate, up = self._quantize([GATE, UP], self._normalize(MLP_NORM, states))
        inner = self._scratch_array(states, gate.shape[1])
        for place, inputs in enumerate(self._normalize(MLP_NORM, states)):
            for path, own in enumerate(inputs):
                inner[place, path] = swiglu(own @ gate[path].T, own @ up[path].T)
        (down,) = self._quantize([DOWN], inner)
        _add_products(states, inner, down)

    def _normalize(self, name: str, states: Floats) -> Iterator[Floats]:
        """Yield the states of every window behind a norm. Shapes: (P, T, E)."""
        weight = self._scales.read_norm(self._checkpoint, f"{self._prefix}{name}")
        return (rms_norm(window, weight, self._config.norm_eps) for window in states)

    def _scratch_array(self, states: Floats, columns: int) -> Floats:
        """Return an array for (W, P, T, columns) numbers in the scratch file."""
        shape = (*states.shape[:3], columns)
        with self._scratch.open("wb") as file:
            # A map of a file with holes ends the process (SIGBUS) when the disk has no room for them.
            os.posix_fallocate(file.fileno(), 0, math.prod(shape) * 4)
        return np.memmap(self._scratch, np.float32, mode="r+", shape=shape)

    def _quantize(self, parts: Sequence[str], inputs: Iterable[Floats]) -> list[Floats]:
        """Quantise linears that share their inputs; return the weights of both paths, (P, N, K) each."""
        names = [f"{self._prefix}{part}" for part in parts]
        curvature = _curvature(self._checkpoint, names[0], self._shapes[names[0]][1], inputs)
        weights = [self._scales.read_linear(self._checkpoint, name, self._shapes[name]) for name in names]
        together = round_linear(
            np.concatenate(weights),
            curvature,
            bits=self._quantization.bits,
            group_size=self._quantization.group_size,
            pool=self._pool,
        )
        rounded = split_rows(together, [len(rows) for rows in weights])
        for name, linear in zip(names, rounded, strict=True):
            self._packed[name] = linear.packed(self._quantization.bits)
        return [np.stack([linear.weights(), rows]) for linear, rows in zip(rounded, weights, strict=True)]


def quantize_head(
    checkpoint: FloatCheckpoint, quantization: QuantizationConfig, states: Floats, pool: Executor
) -> QuantizedLayer:
    """Return the packed head. Shapes: states behind the last layer (W, P, T, E).

    Raises: CheckpointError as a layer does.
    """
    config = checkpoint.config
    norm = checkpoint.read(FINAL_NORM)
    inputs = (rms_norm(window, norm, config.norm_eps) for window in states)
    curvature = _curvature(checkpoint, HEAD, config.hidden_size, inputs)
    weights = convert_array(checkpoint, HEAD, (config.vocabulary_size, config.hidden_size), np.float32)
    parts = [
        round_linear(
            weights[start : start + _HEAD_ROWS],
            curvature,
            bits=quantization.head_bits,
            group_size=quantization.group_size,
            pool=pool,
        )
        for start in range(0, len(weights), _HEAD_ROWS)
    ]
    return QuantizedLayer({HEAD: join_rows(parts).packed(quantization.head_bits)})


def _curvature(checkpoint: FloatCheckpoint, name: str, columns: int, inputs: Iterable[Floats]) -> Curvature:
    """Return what the inputs of a linear say about its columns. Shapes: W times (P, T, K)."""
    gram, lack = np.zeros((columns, columns), np.float32), np.zeros((columns, columns), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # checked below
        for quantized, target in inputs:
            gram += quantized.T @ quantized
            lack += (target - quantized).T @ quantized
    if not (np.isfinite(gram).all() and np.isfinite(lack).all()):
        raise CheckpointError(
            f"{checkpoint.path}: the inputs of {name} are not finite on the calibration text; "
            "fetch the checkpoint again, or use --method search"
        )
    return Curvature.of_inputs(gram, lack)


def _add_products(states: Floats, inputs: Floats, weights: Floats) -> None:
    """Add the outputs of a linear to the states. Shapes: (W, P, T, E), (W, P, T, K), (P, E, K)."""
    for window, paths in zip(states, inputs, strict=True):
        for path, rows in enumerate(paths):
            window[path] += rows @ weights[path].T
