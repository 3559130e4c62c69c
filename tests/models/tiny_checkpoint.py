"""Random checkpoints small enough for a unit test, in every layout this package reads, written without torch.

The float weights are bfloat16 numbers held in float32, so that writing them as bfloat16 loses nothing.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from baichuan2_tpu.checkpoint.layout import layer_linears, layer_norms
from baichuan2_tpu.checkpoint.packing import dequantize
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import ModelConfig

__all__ = [
    "alibi_config",
    "float_weights",
    "official_tensors",
    "restored_weights",
    "rope_config",
    "round_to_bfloat16",
    "split_shards",
    "write_bin",
    "write_llama_safetensors",
    "write_official",
    "write_safetensors_bf16",
]

Tensors = Mapping[str, NDArray[np.float32]]


def rope_config(**changes: object) -> ModelConfig:
    """Make a Baichuan2-7B in small: RoPE, multi-head attention, unnormalised head."""
    config = ModelConfig(
        hidden_size=128,
        intermediate_size=192,
        layers=2,
        heads=4,
        kv_heads=4,
        head_size=32,
        vocabulary_size=320,
        norm_eps=1e-6,
        position="rope",
        rope_theta=10_000.0,
        max_context=256,
        is_head_tied=False,
        is_head_normalized=True,
        bos_id=1,
        eos_ids=(2,),
    )
    return replace(config, **changes)  # pyright: ignore[reportArgumentType] - the caller names real fields


def alibi_config(**changes: object) -> ModelConfig:
    """Make a Baichuan2-13B in small: ALiBi with a number of heads that is no power of two."""
    shape = {"hidden_size": 192, "heads": 6, "kv_heads": 6, "head_size": 32, "position": "alibi"}
    return rope_config(**(shape | changes))


def float_weights(config: ModelConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Make the weights in Llama layout, by their names in a checkpoint (``….weight``).

    The head's rows are not normalised; a tied model has no head.
    """
    random = np.random.default_rng(seed)
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size

    def matrix(rows: int, columns: int, spread: float = 1.0) -> NDArray[np.float32]:
        values = random.normal(0, spread / np.sqrt(columns), (rows, columns))
        return round_to_bfloat16(values.astype(np.float32))

    def norm() -> NDArray[np.float32]:
        return round_to_bfloat16(random.uniform(0.5, 1.5, hidden).astype(np.float32))

    weights = {"model.embed_tokens.weight": matrix(config.vocabulary_size, hidden, spread=4)}
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}"
        weights |= {
            f"{prefix}.self_attn.q_proj.weight": matrix(queries, hidden),
            f"{prefix}.self_attn.k_proj.weight": matrix(keys, hidden),
            f"{prefix}.self_attn.v_proj.weight": matrix(keys, hidden),
            f"{prefix}.self_attn.o_proj.weight": matrix(hidden, queries),
            f"{prefix}.mlp.gate_proj.weight": matrix(inner, hidden),
            f"{prefix}.mlp.up_proj.weight": matrix(inner, hidden),
            f"{prefix}.mlp.down_proj.weight": matrix(hidden, inner),
            f"{prefix}.input_layernorm.weight": norm(),
            f"{prefix}.post_attention_layernorm.weight": norm(),
        }
    weights["model.norm.weight"] = norm()
    if not config.is_head_tied:
        weights["lm_head.weight"] = matrix(config.vocabulary_size, hidden, spread=3)
    return weights


def official_tensors(config: ModelConfig, seed: int) -> dict[str, NDArray[np.float32]]:
    """Make the same weights in the official layout: q, k and v in one W_pack."""
    tensors: dict[str, NDArray[np.float32]] = {}
    weights = float_weights(config, seed)
    for name, tensor in weights.items():
        if ".q_proj." in name:
            parts = [weights[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            tensors[name.replace("q_proj", "W_pack")] = np.concatenate(parts)
        elif ".k_proj." not in name and ".v_proj." not in name:
            tensors[name] = tensor
    return tensors


def write_official(directory: Path, config: ModelConfig, *, seed: int = 0, shards: int = 2) -> Path:
    """Write an official checkpoint: bfloat16 ``.bin`` shards, W_pack, unnormalised head."""
    directory.mkdir(parents=True, exist_ok=True)
    write_config(directory, config)
    tensors = official_tensors(config, seed)
    parts = split_shards(tensors, shards)
    names = shard_names("pytorch_model", "bin", len(parts))
    for name, part in zip(names, parts, strict=True):
        write_bin(directory / name, part)
    if len(parts) > 1:
        write_index(directory / "pytorch_model.bin.index.json", names, parts)
    return directory


def write_llama_safetensors(
    directory: Path, config: ModelConfig, *, seed: int = 0, shards: int = 1, dtype: str = "float32"
) -> Path:
    """Write a Llama checkpoint: safetensors of ``dtype`` ("bfloat16", "float16" or "float32")."""
    config = replace(config, is_head_normalized=False)
    directory.mkdir(parents=True, exist_ok=True)
    write_config(directory, config)
    parts = split_shards(float_weights(config, seed), shards)
    names = shard_names("model", "safetensors", len(parts))
    for name, part in zip(names, parts, strict=True):
        if dtype == "bfloat16":
            write_safetensors_bf16(directory / name, part)
        else:
            save_file({key: value.astype(dtype) for key, value in part.items()}, directory / name)
    if len(parts) > 1:
        write_index(directory / "model.safetensors.index.json", names, parts)
    return directory


def restored_weights(checkpoint: QuantizedCheckpoint) -> dict[str, NDArray[np.floating[Any]]]:
    """Return the weights that a quantised checkpoint stands for, by their float names (``….weight``)."""
    layers = range(checkpoint.config.layers)
    linears = [name for layer in layers for name in layer_linears(checkpoint.config, layer)]
    arrays = [name for layer in layers for name in layer_norms(layer)]
    weights = {f"{name}.weight": dequantize(checkpoint.linear(name)) for name in [*linears, "lm_head"]}
    return weights | {
        f"{name}.weight": checkpoint.array(name) for name in [*arrays, "model.norm", "model.embed_tokens"]
    }


def write_config(directory: Path, config: ModelConfig) -> None:
    """Write config.json the way the official checkpoints spell it, without keys of our own."""
    values = config.to_json()
    values.pop("norm_head_folded", None)
    values.pop("position_embedding_type", None)
    (directory / "config.json").write_text(json.dumps(values), encoding="utf-8")
    # Weights need no tokenizer, but a checkpoint without one is refused; tests of text write a real one.
    (directory / "tokenizer.model").write_bytes(b"placeholder")


def write_index(path: Path, names: list[str], parts: list[dict[str, NDArray[np.float32]]]) -> None:
    weight_map = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), encoding="utf-8")


def shard_names(stem: str, suffix: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.{suffix}"]
    return [f"{stem}-{number:05d}-of-{count:05d}.{suffix}" for number in range(1, count + 1)]


def split_shards(tensors: Tensors, shards: int) -> list[dict[str, NDArray[np.float32]]]:
    """Deal the tensors out in order, about equally many per shard."""
    names = list(tensors)
    bounds = [len(names) * shard // shards for shard in range(shards + 1)]
    return [{name: tensors[name] for name in names[start:stop]} for start, stop in pairwise(bounds)]


def round_to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cut to the 16 upper bits; which way it rounds does not matter to a test."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


def bfloat16_bytes(values: NDArray[np.float32]) -> bytes:
    return (np.ascontiguousarray(values).view(np.uint32) >> np.uint32(16)).astype("<u2").tobytes()


def write_safetensors_bf16(path: Path, tensors: Tensors) -> None:
    """Write bfloat16 safetensors, which numpy cannot hold, by the format's description."""
    header: dict[str, object] = {}
    data = b""
    for name, tensor in tensors.items():
        raw = bfloat16_bytes(tensor)
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": offsets}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_bin(path: Path, tensors: Tensors) -> None:
    """Write a state dict of bfloat16 tensors in the zip form of ``torch.save``."""
    records: list[tuple[str, bytes]] = []
    storages: dict[str, bytes] = {}
    for number, (name, tensor) in enumerate(tensors.items()):
        storages[str(number)] = bfloat16_bytes(tensor)
        records.append((name, pickled_tensor(str(number), tensor.shape)))
    write_bin_zip(path, pickled_dict(records), storages)


def write_bin_zip(path: Path, pickled: bytes, storages: Mapping[str, bytes]) -> None:
    """Write the zip around a pickle; members are stored, not compressed, as torch does."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, data in storages.items():
            archive.writestr(f"archive/data/{key}", data)
        archive.writestr("archive/version", "3\n")


def pickled_dict(records: list[tuple[str, bytes]]) -> bytes:
    """Pickle a dictionary whose values are pickled already."""
    items = b"".join(pickled_text(name) + value for name, value in records)
    return pickle.PROTO + b"\x02" + pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS + pickle.STOP


def pickled_tensor(
    key: str,
    shape: tuple[int, ...],
    *,
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
    elements: int | None = None,
    kind: str = "BFloat16Storage",
) -> bytes:
    """Pickle one tensor as ``torch.save`` does: a call of ``_rebuild_tensor_v2`` on a storage elsewhere.

    Units: ``strides``, ``offset`` and ``elements`` count elements.
    """
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    if elements is None:
        elements = int(np.prod(shape))
    storage = [pickled_text("storage"), pickled_global("torch", kind), pickled_text(key), pickled_text("cpu")]
    hooks = pickled_global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    arguments = [
        pickled_tuple([*storage, pickled_int(elements)]) + pickle.BINPERSID,
        pickled_int(offset),
        pickled_tuple([pickled_int(size) for size in shape]),
        pickled_tuple([pickled_int(stride) for stride in strides]),
        pickle.NEWFALSE,
        hooks,
    ]
    return pickled_global("torch._utils", "_rebuild_tensor_v2") + pickled_tuple(arguments) + pickle.REDUCE


def pickled_global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def pickled_text(text: str) -> bytes:
    raw = text.encode()
    return pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw


def pickled_int(value: int) -> bytes:
    return pickle.BININT + value.to_bytes(4, "little", signed=True)


def pickled_tuple(items: list[bytes]) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE
