"""The arrays that the compiler reads for each net, made from a checkpoint one net at a time.

Packed integers are the checkpoint's own, laid out anew and never computed with. Names are those of ``nets``.
Not here: writing the file (``driver``).
Source of the form: ``llm/LlmConverter.py`` of tpu_mlir 1.30.2 (``unpack_weights``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.floats import FloatCheckpoint
from baichuan2_tpu.checkpoint.gptq import dequantize, unpack_zeros
from baichuan2_tpu.checkpoint.layout import layer_linears, layer_norms
from baichuan2_tpu.checkpoint.weights import PackedLinear, Weights
from baichuan2_tpu.compile.nets import COSINES, EMBEDDING, FINAL_NORM, HEAD, SINES
from baichuan2_tpu.compile.settings import GROUP_SIZE, CompileSettings
from baichuan2_tpu.config import ModelConfig

__all__ = ["Arrays", "Source", "block_weights", "embedding_weights", "head_weights"]

Arrays = dict[str, NDArray[Any]]
Source = Weights | FloatCheckpoint
"""A quantised checkpoint, or a float one where everything is compiled with 16 bits."""


def block_weights(source: Source, settings: CompileSettings, layer: int) -> Arrays:
    """Return what every stage of one layer's block reads; the source's pages are given back.

    Shapes: integers (N, K * bits / 8), the lower bits first; scales float32 and zeros (N, K / 64).
    """
    config = source.config
    arrays = _rotary_tables(config, settings.context) if config.position == "rope" else {}
    prefix = f"model.layers.{layer}."
    for name in layer_norms(layer):
        arrays[f"{name.removeprefix(prefix)}.weight"] = _read_array(source, name)
    for name in layer_linears(config, layer):
        arrays |= _linear_arrays(source, name, name.removeprefix(prefix), settings.bits)
    return arrays


def head_weights(source: Source, settings: CompileSettings) -> Arrays:
    """Return what the head reads, the final norm included."""
    bits = 16 if settings.head == "f16" else 8
    norm = {f"{FINAL_NORM}.weight": _read_array(source, "model.norm")}
    return norm | _linear_arrays(source, "lm_head", HEAD, bits)


def embedding_weights(source: Source) -> Arrays:
    """Return what the embedding reads. Shapes: (V, E)."""
    return {f"{EMBEDDING}.weight": _read_array(source, "model.embed_tokens")}


def _linear_arrays(source: Source, name: str, key: str, bits: int) -> Arrays:
    """Return the arrays of one linear, as floats or as its own integers."""
    if isinstance(source, FloatCheckpoint):
        return {f"{key}.weight": _read_array(source, name)}
    linear = source.linear(name)
    arrays = {f"{key}.weight": dequantize(linear)} if bits == 16 else _packed_arrays(linear, key)
    del linear
    source.release(name)
    return arrays


def _packed_arrays(linear: PackedLinear, key: str) -> Arrays:
    repeats = linear.group_size // GROUP_SIZE
    # Little-endian words hold the lowest input first, just as the compiler wants its bytes.
    words = np.ascontiguousarray(linear.qweight.T).astype("<i4", copy=False)
    groups = words.shape[1] * 32 // linear.bits // GROUP_SIZE
    return {
        f"{key}.qweight": words.view(np.uint8),
        f"{key}.scales": _spread(linear.scales.T, repeats, groups).astype(np.float32),
        f"{key}.qzeros": _spread(unpack_zeros(linear), repeats, groups),
    }


def _spread(values: NDArray[Any], repeats: int, groups: int) -> NDArray[Any]:
    """Repeat the value of every group for the compiler's smaller groups."""
    return np.ascontiguousarray(np.repeat(values, repeats, axis=1)[:, :groups])


def _rotary_tables(config: ModelConfig, context: int) -> Arrays:
    """Return the cosines and sines of every position. Shapes: (S, 1, D), the second half as the first."""
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    angles = np.arange(context)[:, None] * config.rope_theta**-exponents
    angles = np.concatenate([angles, angles], axis=1)[:, None]
    return {
        f"{COSINES}.weight": np.cos(angles).astype(np.float32),
        f"{SINES}.weight": np.sin(angles).astype(np.float32),
    }


def _read_array(source: Source, name: str) -> NDArray[np.float32]:
    values = source.read(name) if isinstance(source, FloatCheckpoint) else source.array(name)
    values = np.array(values, np.float32)
    source.release(name)
    return values
