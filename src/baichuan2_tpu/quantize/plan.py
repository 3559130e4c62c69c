"""What a quantised checkpoint will consist of: its config, its files, their tensors and sizes.

Pure: nothing is read or written here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from baichuan2_tpu.checkpoint.layout import (
    EMBEDDING,
    FINAL_NORM,
    HALF_ARRAYS,
    HEAD,
    QUANTIZED_HEAD_FILE,
    Shape,
    Shapes,
    layer_linears,
    layer_norms,
    packed_shapes,
)
from baichuan2_tpu.config import GROUP_MULTIPLE, Method, ModelConfig, QuantizationConfig
from baichuan2_tpu.errors import RequestError

__all__ = ["Plan", "Shard", "make_plan", "quantization_settings"]

_GROUP_LIMIT = 1 << 16  # twice the longest row of the family, the 28672 of Llama 70B's down_proj


@dataclass(frozen=True, slots=True)
class Shard:
    """One file: its linears with their (N, K), its plain arrays with their shapes, the bytes of them all."""

    file: str
    linears: dict[str, tuple[int, int]]
    arrays: dict[str, tuple[int, ...]]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The config of the quantised checkpoint, and its files in order."""

    config: ModelConfig
    quantization: QuantizationConfig
    shards: tuple[Shard, ...]

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(shard.size_bytes for shard in self.shards)


def quantization_settings(
    bits: int, group_size: int, head_bits: int, *, method: Method = "search"
) -> QuantizationConfig:
    """Check the settings of a user.

    Raises: RequestError naming the value and what is allowed.
    """
    if not 0 < group_size <= _GROUP_LIMIT or group_size % GROUP_MULTIPLE:
        raise RequestError(
            f"group size is {group_size}, allowed are multiples of {GROUP_MULTIPLE} up to {_GROUP_LIMIT}"
        )
    return QuantizationConfig(
        bits=_require_bits("bits", bits),
        group_size=group_size,
        head_bits=_require_bits("head bits", head_bits),
        method=method,
    )


def make_plan(config: ModelConfig, quantization: QuantizationConfig) -> Plan:
    """Lay out the quantised form of a model: the embedding, the layers, the float head, the quantised head.

    Each is a file, and the quantised head, which only our engines read, is the last one.
    Raises: CheckpointError when a linear's size cannot be packed.
    """
    # The head is written folded, so the result is a plain Llama, or a Baichuan that says so. A folded head is
    # not the embedding, which another tool would take where they are tied.
    is_tied = config.is_head_tied and not config.is_head_normalized
    config = replace(config, is_head_tied=is_tied, is_head_normalized=False, quantization=quantization)
    hidden, vocabulary = config.hidden_size, config.vocabulary_size
    files = [
        f"model-{number + 1:05d}-of-{config.layers + 2:05d}.safetensors"
        for number in range(config.layers + 2)
    ]
    first = _make_shard(config, files[0], {}, {EMBEDDING: (vocabulary, hidden)})
    layers = [
        _make_shard(config, file, layer_linears(config, layer), dict.fromkeys(layer_norms(layer), (hidden,)))
        for layer, file in enumerate(files[1:-1])
    ]
    head = {} if config.is_head_tied else {HEAD: (vocabulary, hidden)}
    last = _make_shard(config, files[-1], {}, {FINAL_NORM: (hidden,)} | head)
    quantized_head = _make_shard(config, QUANTIZED_HEAD_FILE, {HEAD: (vocabulary, hidden)}, {})
    return Plan(config, quantization, (first, *layers, last, quantized_head))


def _require_bits(name: str, bits: int) -> Literal[4, 8]:
    choices: dict[int, Literal[4, 8]] = {4: 4, 8: 8}
    if bits not in choices:
        raise RequestError(f"{name} is {bits}, allowed are 4 and 8")
    return choices[bits]


def _make_shard(
    config: ModelConfig, file: str, linears: dict[str, tuple[int, int]], arrays: dict[str, tuple[int, ...]]
) -> Shard:
    """Add up the bytes of a file's tensors."""
    shapes: Shapes = dict(arrays)
    for name, size in linears.items():
        shapes |= packed_shapes(config, name, *size)
        shapes[f"{name}.g_idx"] = (size[1],)
    return Shard(file, linears, arrays, sum(_tensor_bytes(name, shape) for name, shape in shapes.items()))


def _tensor_bytes(name: str, shape: Shape) -> int:
    """Return the bytes of one tensor: packed and plain integers and norms take 4 per element, the rest 2."""
    is_half = name.endswith(".scales") or name in HALF_ARRAYS
    return math.prod(shape) * (2 if is_half else 4)
