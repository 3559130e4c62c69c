"""Tiny checkpoints as other tools quantise them, packed here by plain numpy, with the weights they stand for.

Not here: our own quantised form. The integers are random: what a test needs is numbers to compare.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from baichuan2_tpu.config import ModelConfig
from models.tiny_checkpoint import float_weights, official_tensors, rope_config

__all__ = [
    "Arrays",
    "Integers",
    "foreign_config",
    "is_linear",
    "pack_awq",
    "pack_compressed",
    "pack_gptq",
    "random_integers",
    "write_foreign",
]

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Integers:
    """A linear as integers: ``codes`` (N, K), ``scales`` and ``zeros`` (N, G), ``groups`` (K,)."""

    codes: NDArray[np.int64]
    scales: NDArray[np.float16]
    zeros: NDArray[np.int64]
    groups: NDArray[np.int64]
    bits: int

    def weights(self) -> NDArray[np.float32]:
        """Return the float weights. Shapes: (N, K)."""
        steps = (self.codes - self.zeros[:, self.groups]).astype(np.float32)
        return steps * self.scales.astype(np.float32)[:, self.groups]


def random_integers(
    shape: tuple[int, int],
    random: np.random.Generator,
    *,
    bits: int = 4,
    group_size: int = 64,
    symmetric: bool = False,
    order: bool = False,
) -> Integers:
    """Make a linear whose weights are about as large as those of a model; ``order`` mixes the columns."""
    outputs, inputs = shape
    size = inputs if group_size == -1 else group_size
    count = -(-inputs // size)
    middle = 1 << (bits - 1)
    zeros = (
        random.integers(0, 1 << bits, (outputs, count))
        if not symmetric
        else np.full((outputs, count), middle)
    )
    groups = np.arange(inputs) // size
    scales = random.uniform(0.5, 1.5, (outputs, count)) * 4 / (middle * np.sqrt(inputs))
    return Integers(
        codes=random.integers(0, 1 << bits, shape),
        scales=scales.astype(np.float16),
        zeros=zeros,
        groups=random.permutation(groups) if order else groups,
        bits=bits,
    )


def pack_words(values: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Put neighbours along the last axis into words of 32 bits, the first into the lowest bits."""
    per_word = 32 // bits
    padded = np.pad(values, ((0, 0), (0, -values.shape[1] % per_word)))
    words = np.zeros((values.shape[0], padded.shape[1] // per_word), np.uint64)
    for place in range(per_word):
        words |= padded[:, place::per_word].astype(np.uint64) << np.uint64(bits * place)
    return words.astype(np.uint32).view(np.int32)


def pack_gptq(linear: Integers, *, minus_one: bool = True) -> Arrays:
    """Pack as AutoGPTQ does; ``minus_one`` False as GPTQModel's second format."""
    stored = (linear.zeros - 1) % (1 << linear.bits) if minus_one else linear.zeros
    return {
        "qweight": np.ascontiguousarray(pack_words(linear.codes, linear.bits).T),
        "qzeros": pack_words(np.ascontiguousarray(stored.T), linear.bits),
        "scales": np.ascontiguousarray(linear.scales.T),
        "g_idx": linear.groups.astype(np.int32),
    }


def pack_awq(linear: Integers) -> Arrays:
    """Pack as AutoAWQ's gemm does: along the outputs, in the order of its ``order_map``."""
    order = np.arange(linear.codes.shape[0]).reshape(-1, 8)[:, [0, 2, 4, 6, 1, 3, 5, 7]].reshape(-1)
    return {
        "qweight": pack_words(linear.codes[order].T, linear.bits),
        "qzeros": pack_words(linear.zeros[order].T, linear.bits),
        "scales": np.ascontiguousarray(linear.scales.T),
    }


def pack_compressed(linear: Integers, *, zeros: str) -> Arrays:
    """Pack as compressed-tensors does; ``zeros`` are "none", "words", or "bytes" as before 0.9."""
    arrays: Arrays = {
        "weight_packed": pack_words(linear.codes, linear.bits),
        "weight_scale": linear.scales,
        "weight_shape": np.array(linear.codes.shape),
    }
    if zeros == "words":
        arrays["weight_zero_point"] = np.ascontiguousarray(pack_words(linear.zeros.T, linear.bits).T)
    if zeros == "bytes":
        arrays["weight_zero_point"] = (linear.zeros - (1 << (linear.bits - 1))).astype(np.int8)
    return arrays


def foreign_config(**changes: object) -> ModelConfig:
    """Make a configuration whose sizes hold groups of 128."""
    return rope_config(hidden_size=128, intermediate_size=256, **changes)


def is_linear(name: str, *, head: bool = False) -> bool:
    """Tell whether a tensor is that of a linear of a layer, or of the head too."""
    return ".self_attn." in name or ".mlp." in name or (head and name == "lm_head.weight")


def write_foreign(
    directory: Path,
    quantization: Mapping[str, object],
    pack: Callable[[Integers], Arrays],
    *,
    config: ModelConfig | None = None,
    head: bool = False,
    seed: int = 0,
    **integers: Any,
) -> dict[str, NDArray[np.float32]]:
    """Write a checkpoint of packed linears and float16 rest; return what all of its weights are.

    A config with a normalised head is written in the official layout, with ``W_pack``.
    """
    config = config or foreign_config(is_head_normalized=False)
    random = np.random.default_rng(seed)
    is_official = config.is_head_normalized
    tensors = official_tensors(config, seed) if is_official else float_weights(config, seed)
    written: Arrays = {}
    weights: dict[str, NDArray[np.float32]] = {}
    for name, tensor in tensors.items():
        if is_linear(name, head=head):
            linear = random_integers((tensor.shape[0], tensor.shape[1]), random, **integers)
            weights[name] = linear.weights()
            written |= {
                f"{name.removesuffix('.weight')}.{part}": value for part, value in pack(linear).items()
            }
        else:
            written[name] = tensor.astype(np.float16)
            weights[name] = written[name].astype(np.float32)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(written, directory / "model.safetensors")
    values = replace(config, quantization=None).to_json()
    values.pop("norm_head_folded", None)
    values.pop("position_embedding_type", None)
    (directory / "config.json").write_text(json.dumps(values | {"quantization_config": dict(quantization)}))
    (directory / "tokenizer.model").write_bytes(b"placeholder")
    return weights
