"""The arrays that the compiler reads for each net, made from a checkpoint one net at a time.

Packed integers are the checkpoint's own, laid out anew and never computed with. Names are those of ``nets``.
Not here: writing the file (``driver``).
Source of the form: ``llm/LlmConverter.py`` of tpu_mlir 1.30.2 (``unpack_weights``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint import layout
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import layer_linears, layer_norms
from baichuan2_tpu.checkpoint.packing import unpack_zeros
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.compile.alibi import alibi_arrays
from baichuan2_tpu.compile.float_rows import Source, float_rows, read_norm
from baichuan2_tpu.compile.nets import COSINES, EMBEDDING, FINAL_NORM, HEAD, SINES, layers_of
from baichuan2_tpu.compile.settings import CompileSettings, compiled_group_size
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.manifest import Float

__all__ = ["Arrays", "Source", "block_weights", "embedding_weights", "head_weights"]

Arrays = dict[str, NDArray[Any]]


def block_weights(source: Source, settings: CompileSettings, number: int) -> Arrays:
    """Return what every stage of the block net ``number`` reads; the source's pages are given back.

    Shapes: integers (N, K * bits / 8), the lower bits first; scales float32 and zeros (N, K / group); with 16
    bits (K, N) of the settings' type, bfloat16 as its bits. Tables have ``context`` positions in every stage,
    whatever its history, so that all stages share them.
    """
    config = source.config
    layers = layers_of(config, settings, number)
    make_tables = _rotary_arrays if config.position == "rope" else alibi_arrays
    arrays: Arrays = {**make_tables(config, settings.context)}
    for place, layer in enumerate(layers):
        arrays |= _layer_arrays(source, settings, layer, f"{place}.")
    return arrays


def head_weights(source: Source, settings: CompileSettings) -> Arrays:
    """Return what the head reads, the final norm included; see ``block_weights`` for the shapes."""
    arrays: Arrays = {f"{FINAL_NORM}.weight": read_norm(source, layout.FINAL_NORM)}
    if settings.head != "f16":
        return arrays | _packed_arrays(source, layout.HEAD, HEAD)
    shape = (source.config.vocabulary_size, source.config.hidden_size)
    return arrays | {f"{HEAD}.weight": _float_columns(source, layout.HEAD, shape, settings.dtype)}


def embedding_weights(source: Source, settings: CompileSettings) -> Arrays:
    """Return what the embedding reads. Shapes: (V, E)."""
    shape = (source.config.vocabulary_size, source.config.hidden_size)
    rows = list(float_rows(source, layout.EMBEDDING, shape, settings.dtype))
    return {f"{EMBEDDING}.weight": np.concatenate(rows)}


def _layer_arrays(source: Source, settings: CompileSettings, layer: int, prefix: str) -> Arrays:
    """Return the norms and the linears of one layer, named by its place in the net."""
    arrays: Arrays = {}
    checkpoint_prefix = f"model.layers.{layer}."
    for name in layer_norms(layer):
        arrays[f"{prefix}{name.removeprefix(checkpoint_prefix)}.weight"] = read_norm(source, name)
    for name, shape in layer_linears(source.config, layer).items():
        key = f"{prefix}{name.removeprefix(checkpoint_prefix)}"
        if settings.bits == 16:
            arrays[f"{key}.weight"] = _float_columns(source, name, shape, settings.dtype)
        else:
            arrays |= _packed_arrays(source, name, key)
    return arrays


def _float_columns(source: Source, name: str, shape: tuple[int, int], dtype: Float) -> NDArray[Any]:
    """Return a linear with its inputs outside: so the chip reads it at 58 GB/s, not 43 (cycle model).

    Shapes: ``shape`` is (N, K); the result (K, N).
    """
    values = np.empty((shape[1], shape[0]), np.float16 if dtype == "float16" else np.uint16)
    start = 0
    for rows in float_rows(source, name, shape, dtype):
        values[:, start : start + len(rows)] = rows.T
        start += len(rows)
    return values


def _packed_arrays(source: Source, name: str, key: str) -> Arrays:
    assert not isinstance(source, FloatCheckpoint), name  # noqa: S101 - the settings are checked before
    arrays = _repack(source.linear(name), key, compiled_group_size(source.config))
    source.release(name)
    return arrays


def _repack(linear: PackedLinear, key: str, group_size: int) -> Arrays:
    repeats = linear.group_size // group_size
    # Little-endian words hold the lowest input first, just as the compiler wants its bytes.
    words = np.ascontiguousarray(linear.qweight.T).astype("<i4", copy=False)
    groups = words.shape[1] * 32 // linear.bits // group_size
    return {
        f"{key}.qweight": words.view(np.uint8),
        f"{key}.scales": _repeat_groups(linear.scales.T, repeats, groups).astype(np.float32),
        f"{key}.qzeros": _repeat_groups(unpack_zeros(linear), repeats, groups),
    }


def _repeat_groups(values: NDArray[Any], repeats: int, groups: int) -> NDArray[Any]:
    """Repeat the value of every group where the compiler has smaller ones."""
    return np.ascontiguousarray(np.repeat(values, repeats, axis=1)[:, :groups])


def _rotary_arrays(config: ModelConfig, context: int) -> dict[str, NDArray[np.float32]]:
    """Return the cosines and sines of every position. Shapes: (S, 1, D), the second half as the first."""
    exponents = np.arange(0, config.head_size, 2) / config.head_size
    angles = np.arange(context)[:, None] * config.rope_theta**-exponents
    angles = np.concatenate([angles, angles], axis=1)[:, None]
    return {
        f"{COSINES}.weight": np.cos(angles).astype(np.float32),
        f"{SINES}.weight": np.sin(angles).astype(np.float32),
    }
