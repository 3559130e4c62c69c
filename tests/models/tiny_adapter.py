"""Adapters as PEFT saves them, small enough for a unit test, and the plain formula of what they do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from baichuan2_tpu.config import ModelConfig
from models.tiny_checkpoint import write_bin

__all__ = ["Matrices", "adapter_matrices", "write_adapter"]

Matrices = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]
"""A (r, K) and B (N, r) by the name of their module."""

_SHAPES = {
    "q_proj": ("queries", "hidden"),
    "k_proj": ("keys", "hidden"),
    "v_proj": ("keys", "hidden"),
    "W_pack": ("packed", "hidden"),
    "o_proj": ("hidden", "queries"),
    "gate_proj": ("inner", "hidden"),
    "up_proj": ("inner", "hidden"),
    "down_proj": ("hidden", "inner"),
    "lm_head": ("vocabulary", "hidden"),
}


def adapter_matrices(
    config: ModelConfig, targets: tuple[str, ...], *, rank: int = 4, seed: int = 0
) -> Matrices:
    """Make random matrices for every module that a target names."""
    random = np.random.default_rng(seed)
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    sizes = {
        "hidden": config.hidden_size,
        "inner": config.intermediate_size,
        "queries": queries,
        "keys": keys,
        "packed": queries + 2 * keys,
        "vocabulary": config.vocabulary_size,
    }
    matrices: Matrices = {}
    for target in targets:
        rows, columns = (sizes[axis] for axis in _SHAPES[target])
        part = "mlp" if target in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        modules = [f"model.layers.{layer}.{part}.{target}" for layer in range(config.layers)]
        for module in ["lm_head"] if target == "lm_head" else modules:
            # Numbers of bfloat16's precision, so that writing them in it loses nothing.
            a = random.integers(-16, 17, (rank, columns)) / 128
            b = random.integers(-16, 17, (rows, rank)) / 128
            matrices[module] = a.astype(np.float32), b.astype(np.float32)
    return matrices


def write_adapter(
    directory: Path,
    matrices: Matrices,
    *,
    whole: Mapping[str, NDArray[np.float32]] | None = None,
    is_bin: bool = False,
    settings: Mapping[str, object] | None = None,
) -> Path:
    """Write an adapter of rank 4 and alpha 8; ``settings`` change adapter_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    values: dict[str, object] = {
        "peft_type": "LORA",
        "base_model_name_or_path": "baichuan-inc/Baichuan2-7B-Chat",
        "r": 4,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "target_modules": sorted({module.rpartition(".")[2] for module in matrices}),
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "task_type": "CAUSAL_LM",
    }
    (directory / "adapter_config.json").write_text(json.dumps(values | dict(settings or {})))
    tensors: dict[str, NDArray[np.float32]] = {}
    for module, pair in matrices.items():
        for letter, matrix in zip("AB", pair, strict=True):
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = matrix
    tensors |= {f"base_model.model.{name}.weight": tensor for name, tensor in (whole or {}).items()}
    if is_bin:
        write_bin(directory / "adapter_model.bin", tensors)
    else:
        save_file(tensors, directory / "adapter_model.safetensors")
    return directory
