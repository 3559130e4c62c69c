"""One layer becomes integers by range search after its columns were scaled.

A column's error counts as much as the mean square of its input.
Not here: choosing and folding scales (``layer_scales``), files and resuming (``calibrated_run``).
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu import _native
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import layer_linears
from baichuan2_tpu.checkpoint.packing import pack_linear
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.quantize.layer_scales import find_layer_scales
from baichuan2_tpu.quantize.quantized_layer import QuantizedLayer

__all__ = ["scale_layer"]

Floats = NDArray[np.float32]

_ROWS_PER_TASK = 512


def scale_layer(
    checkpoint: FloatCheckpoint, quantization: QuantizationConfig, layer: int, states: Floats, pool: Executor
) -> QuantizedLayer:
    """Return the packed linears and the norms of one layer. Shapes: states (W, T, E), of the float model.

    Side effect: ``states`` become those behind the layer.
    Raises: CheckpointError for a weight that is not allowed, or inputs that are not finite.
    """
    group_size = quantization.group_size
    scales = find_layer_scales(checkpoint, layer, states, group_size=group_size, pool=pool)
    form = (quantization.bits, group_size)
    packed = {
        name: _search(scales.read_linear(checkpoint, name, shape), scales.importance[name], form, pool)
        for name, shape in layer_linears(checkpoint.config, layer).items()
    }
    return QuantizedLayer(packed, {name: scales.read_norm(checkpoint, name) for name in scales.norms})


def _search(weights: Floats, importance: Floats, form: tuple[int, int], pool: Executor) -> PackedLinear:
    """Search the ranges of one linear. Shapes: (N, K), (K,)."""
    bits, group_size = form

    def work(start: int) -> tuple[NDArray[Any], ...]:
        rows = weights[start : start + _ROWS_PER_TASK]
        return _native.quantize_groups(rows, bits, group_size, importance)

    parts = zip(*pool.map(work, range(0, len(weights), _ROWS_PER_TASK)), strict=True)
    integers, scales, zeros = (np.concatenate(part) for part in parts)
    return pack_linear(integers, scales.view(np.float16), zeros, bits=bits, group_size=group_size)
