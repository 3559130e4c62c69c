"""How much memory a model takes, from its dimensions alone, and how much the machine has.

Not here: measuring what a process really holds (``bench``), the memory of a TPU (``doctor.tpu_memory``).
Source: the sizes of GPTQ form (``checkpoint.layout``), those of keys and values (``config``).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from baichuan2_tpu.checkpoint.layout import HEAD, layer_linears
from baichuan2_tpu.config import KvBits, ModelConfig
from baichuan2_tpu.errors import ContextLengthError

__all__ = [
    "CGROUP_LIMITS",
    "MemoryNeed",
    "check_context",
    "fit_context",
    "machine_memory_bytes",
    "memory_need",
]

_FLOAT16_BYTES = 2
_FLOAT32_BYTES = 4
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the limit of a container, of both versions of cgroups."""


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What a quantised model takes.

    Units: ``embedding_bytes`` are mapped from the file and held by the system as it sees fit.
    """

    linear_bytes: int
    norm_bytes: int
    embedding_bytes: int
    kv_bytes_per_token: int

    @property
    def weight_bytes(self) -> int:
        """Everything that does not depend on the context."""
        return self.linear_bytes + self.norm_bytes + self.embedding_bytes

    def total_bytes(self, context: int) -> int:
        """Weights and the KV cache of one full sequence."""
        return self.weight_bytes + context * self.kv_bytes_per_token

    def longest_context(self, limit_bytes: int) -> int:
        """Tokens whose KV cache fits beside the weights; 0 when the weights alone do not fit."""
        return max(0, limit_bytes - self.weight_bytes) // self.kv_bytes_per_token


def memory_need(config: ModelConfig, kv_bits: KvBits = 16) -> MemoryNeed:
    """Count the bytes of a model; one that is not quantised yet is counted in float16.

    ``kv_bits`` are those of keys and values; a compiled model has 16.
    """
    linears = {HEAD: (config.vocabulary_size, config.hidden_size)}
    for layer in range(config.layers):
        linears |= layer_linears(config, layer)
    return MemoryNeed(
        linear_bytes=sum(_linear_bytes(config, name, *size) for name, size in linears.items()),
        norm_bytes=(2 * config.layers + 1) * config.hidden_size * _FLOAT32_BYTES,
        embedding_bytes=config.vocabulary_size * config.hidden_size * _FLOAT16_BYTES,
        kv_bytes_per_token=config.kv_bytes_per_token(kv_bits),
    )


def machine_memory_bytes() -> int:
    """Return the memory this process could get at most: the machine's, or its container's if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [path.read_text().strip() for path in CGROUP_LIMITS if path.is_file()]
    return min([machine, *(int(limit) for limit in limits if limit.isdecimal())])


def fit_context(
    config: ModelConfig, context: int | None, notice: Callable[[str], None], *, kv_bits: KvBits
) -> int:
    """Return the context to open a model with; None asks for the model's own, or the longest that fits.

    Side effect: ``notice`` is told of a context that is shorter than the model's own for want of memory.
    Raises: ContextLengthError with the numbers when a context that was asked for cannot fit.
    """
    limit = machine_memory_bytes()
    longest = max(1, memory_need(config, kv_bits).longest_context(limit))
    chosen = min(config.max_context, longest) if context is None else context
    check_context(config, chosen, limit, kv_bits=kv_bits)
    if context is None and chosen < config.max_context:
        notice(f"context shortened to {chosen} of the model's {config.max_context} tokens: memory is short")
    return chosen


def check_context(config: ModelConfig, context: int, limit_bytes: int, *, kv_bits: KvBits) -> None:
    """Check that the weights and a full KV cache fit into ``limit_bytes``, before anything is loaded.

    Raises: ContextLengthError with every number, and the longest context that fits.
    """
    need = memory_need(config, kv_bits)
    if need.total_bytes(context) <= limit_bytes:
        return
    longest = min(need.longest_context(limit_bytes), config.max_context)
    advice = f"choose a context of {longest} or less" if longest else "use fewer bits or a larger machine"
    cache, weights = _gigabytes(context * need.kv_bytes_per_token), _gigabytes(need.weight_bytes)
    raise ContextLengthError(
        f"a context of {context} tokens needs {cache} of KV cache beside {weights} of weights, "
        f"this machine has {_gigabytes(limit_bytes)}; {advice}"
    )


def _linear_bytes(config: ModelConfig, name: str, outputs: int, inputs: int) -> int:
    """Count integers, scales and zeros of one linear layer."""
    quantization = config.quantization
    if quantization is None:
        return outputs * inputs * _FLOAT16_BYTES
    bits = quantization.head_bits if name == HEAD else quantization.bits
    groups = -(-inputs // quantization.group_size)
    return outputs * (inputs * bits + groups * (bits + 8 * _FLOAT16_BYTES)) // 8


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:,.2f} GB"
