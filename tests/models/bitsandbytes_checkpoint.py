"""Tiny checkpoints in the 4 bits of bitsandbytes, packed here by plain numpy, with their weights.

Two ways to store them: that of the official Baichuan2 -4bits, and that of transformers.
"""

from __future__ import annotations

import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from models.foreign_checkpoint import foreign_config, is_linear
from models.tiny_checkpoint import (
    float_weights,
    official_tensors,
    pickled_dict,
    pickled_global,
    pickled_int,
    pickled_tensor,
    pickled_text,
    pickled_tuple,
    write_bin_zip,
    write_config,
)

__all__ = ["UP", "pickled_list", "write_official_4bits", "write_transformers_4bits"]

UP = "model.layers.0.mlp.up_proj"
"""The linear whose weights are unpacked; the others take time."""

# The quantiles of a normal distribution that bitsandbytes has in csrc/kernels.cu, to four places.
BELOW = (-1, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0911)
ABOVE = (0.0796, 0.1609, 0.2461, 0.3379, 0.4407, 0.5626, 0.7230, 1)
NF4 = np.array([*BELOW, 0, *ABOVE], np.float32)
NESTED_TABLE = np.linspace(-1, 1, 256, dtype=np.float32)
BLOCK, NESTED_BLOCK = 64, 256
OFFSET = np.float32(0.05)


@dataclass(frozen=True)
class Packed:
    """A tensor of (N, K) weights as bitsandbytes packs it, with ``maxima`` rounded to 8 bits."""

    shape: tuple[int, int]
    data: NDArray[np.uint8]
    maxima: NDArray[np.uint8]
    nested_maxima: NDArray[np.float32]

    def weights(self) -> NDArray[np.float32]:
        """Unpack one weight after the other."""
        weights = np.empty(self.shape[0] * self.shape[1], np.float32)
        for place in range(weights.size):
            byte = int(self.data[place // 2, 0])
            code = byte & 15 if place % 2 else byte >> 4
            block = place // BLOCK
            largest = NESTED_TABLE[self.maxima[block]] * self.nested_maxima[block // NESTED_BLOCK] + OFFSET
            weights[place] = NF4[code] * largest
        return weights.reshape(self.shape)


def pack(shape: tuple[int, int], random: np.random.Generator) -> Packed:
    count = shape[0] * shape[1]
    blocks = -(-count // BLOCK)
    return Packed(
        shape,
        random.integers(0, 256, (count // 2, 1), np.uint8),
        random.integers(0, 256, blocks, np.uint8),
        random.uniform(0.01, 0.04, -(-blocks // NESTED_BLOCK)).astype(np.float32),
    )


def pickled_list(items: list[bytes]) -> bytes:
    return pickle.EMPTY_LIST + pickle.MARK + b"".join(items) + pickle.APPENDS


def write_official_4bits(folder: Path) -> dict[str, NDArray[np.float32]]:
    """Write W_pack and the other linears as ``quantizer.py`` saves them; return all weights."""
    config, random = foreign_config(), np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    records: list[tuple[str, bytes]] = []
    storages: dict[str, bytes] = {}
    weights: dict[str, NDArray[np.float32]] = {}

    def tensor(values: NDArray[Any], kind: str) -> bytes:
        key = str(len(storages))
        storages[key] = values.tobytes()
        return pickled_tensor(key, values.shape, kind=kind)

    half, size = pickled_global("torch", "float16"), pickled_global("torch", "Size")
    for name, values in official_tensors(config, 0).items():
        if not is_linear(name):
            weights[name] = values.astype(np.float16).astype(np.float32)
            records.append((name, tensor(values.astype(np.float16), "HalfStorage")))
            continue
        packed = pack((values.shape[0], values.shape[1]), random)
        if name == f"{UP}.weight":
            weights[name] = packed.weights()
        shape = pickled_tuple([pickled_tuple([pickled_int(n) for n in packed.shape])])
        nested = [
            tensor(packed.nested_maxima, "FloatStorage"),
            tensor(NESTED_TABLE, "FloatStorage"),
            pickled_int(NESTED_BLOCK),
            pickle.NEWFALSE,
            half,
            pickle.NONE,
            pickle.NONE,
        ]
        state = [
            tensor(packed.maxima, "ByteStorage"),
            size + shape + pickle.REDUCE,
            half,
            pickled_int(BLOCK),
            pickled_list([tensor(np.array(OFFSET), "FloatStorage"), pickled_list(nested)]),
            pickled_text("nf4"),
            tensor(NF4, "FloatStorage"),
        ]
        records.append((f"{name}.data", tensor(packed.data, "ByteStorage")))
        records.append((f"{name}.quant_state", pickled_list(state)))
    write_bin_zip(folder / "pytorch_model.bin", pickled_dict(records), storages)
    write_config(folder, config)
    values = json.loads((folder / "config.json").read_text())
    settings = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": settings}))
    return weights


def write_transformers_4bits(folder: Path, *, nested: bool = True) -> NDArray[np.float32]:
    """Write a Llama as transformers saves one in 4 bits; return the weights of ``UP``."""
    config, random = foreign_config(is_head_normalized=False), np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    tensors: dict[str, NDArray[Any]] = {}
    weights = np.zeros(0, np.float32)
    for name, values in float_weights(config, 0).items():
        if not is_linear(name):
            tensors[name] = values.astype(np.float16)
            continue
        packed = pack((values.shape[0], values.shape[1]), random)
        state: dict[str, object] = {"quant_type": "nf4", "blocksize": BLOCK, "shape": list(packed.shape)}
        tensors |= {name: packed.data, f"{name}.quant_map": NF4, f"{name}.absmax": packed.maxima}
        if nested:
            state |= {"nested_blocksize": NESTED_BLOCK, "nested_offset": float(OFFSET)}
            tensors[f"{name}.nested_absmax"] = packed.nested_maxima
            tensors[f"{name}.nested_quant_map"] = NESTED_TABLE
        else:
            factors = np.repeat(packed.nested_maxima, NESTED_BLOCK)[: packed.maxima.size]
            tensors[f"{name}.absmax"] = NESTED_TABLE[packed.maxima] * factors + OFFSET
        tensors[f"{name}.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(state).encode(), np.uint8)
        if name == f"{UP}.weight":
            weights = packed.weights()
    save_file(tensors, folder / "model.safetensors")
    write_config(folder, config)
    values = json.loads((folder / "config.json").read_text())
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(values | {"quantization_config": settings}))
    return weights
