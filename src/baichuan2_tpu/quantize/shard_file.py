"""Write one file of a quantised checkpoint.

Not here: which files there are (``plan``), in which order they are made (``driver``, ``calibrated_run``).
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType] - a bare PathLike in it

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import HALF_ARRAYS, linear_bits
from baichuan2_tpu.checkpoint.packing import shift_zeros
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.files import whole_file
from baichuan2_tpu.quantize.linear import convert_array, quantize_linear
from baichuan2_tpu.quantize.plan import Plan, Shard
from baichuan2_tpu.quantize.quantized_layer import QuantizedLayer

__all__ = ["write_shard"]

_ERROR_CODE = re.compile(r"\b(?:code:|os error) (\d+)")
_FILE_MODE = 0o644  # the safetensors library makes files that only their owner can read
_NOT_CALIBRATED = QuantizedLayer()


def write_shard(
    checkpoint: FloatCheckpoint,
    plan: Plan,
    shard: Shard,
    directory: Path,
    *,
    layer: QuantizedLayer = _NOT_CALIBRATED,
) -> Path:
    """Write one file and return its path; linears that ``layer`` lacks are quantised by range search."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in shard.arrays.items():
        dtype = np.float16 if name in HALF_ARRAYS else np.float32
        own = layer.norms.get(name)
        tensors[f"{name}.weight"] = convert_array(checkpoint, name, shape, dtype) if own is None else own
    for name, size in shard.linears.items():
        linear = layer.packed.get(name) or _search(checkpoint, plan, name, size)
        tensors |= _name_tensors(name, linear, size[1])
    path = directory / shard.file
    with whole_file(path) as part:
        _save(tensors, part)
        part.chmod(_FILE_MODE)
    return path


def _save(tensors: dict[str, NDArray[Any]], path: Path) -> None:
    """Write the tensors.

    Raises: OSError, which the library has as text: "I/O error: No space left on device (os error 28)".
    """
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        code = _ERROR_CODE.search(str(error))
        if code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def _search(checkpoint: FloatCheckpoint, plan: Plan, name: str, size: tuple[int, int]) -> PackedLinear:
    bits = linear_bits(plan.config, name)
    return quantize_linear(checkpoint, name, size, bits=bits, group_size=plan.quantization.group_size)


def _name_tensors(name: str, linear: PackedLinear, inputs: int) -> dict[str, NDArray[Any]]:
    """Return the tensors of a packed linear, with zeros as they are and the group of every column.

    The form that other readers take: with zeros minus one, GPTQModel allows only symmetric integers.
    """
    return {
        f"{name}.qweight": linear.qweight,
        f"{name}.qzeros": shift_zeros(linear.qzeros, linear.bits, 1),
        f"{name}.scales": linear.scales,
        f"{name}.g_idx": (np.arange(inputs) // linear.group_size).astype(np.int32),
    }
