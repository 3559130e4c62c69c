"""``baichuan2 info``: what a model is and what it will take, before anything is loaded.

Not here: counting the bytes (``memory``).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.models import read_config, resolve
from baichuan2_tpu.cli.terminal import write_result

if TYPE_CHECKING:
    from baichuan2_tpu.config import ModelConfig, QuantizationConfig

__all__ = ["info"]

_WEIGHT_FILES = ("*.safetensors", "*.bin")


def info(
    model: options.Model,
    *,
    context: options.Context = None,
    bits: options.Bits = options.BitsName.FOUR,
    head_bits: options.HeadBits = options.BitsName.EIGHT,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is and what it will take.

    Nothing is loaded. A float checkpoint is not quantised for this: it is counted as if it were, at --bits
    and --head-bits.
    """
    from baichuan2_tpu.config import QuantizationConfig

    facts = _describe(_directory(model), context, QuantizationConfig(bits.bits, head_bits=head_bits.bits))
    if as_json:
        write_result(json.dumps(facts, ensure_ascii=False) + "\n")
        return
    for name, value in facts.items():
        write_result(f"{name:<24}{_shown(name, value)}\n")


def _shown(name: str, value: object) -> str:
    """Write a value for a person."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and name.endswith("_bytes"):
        return f"{value / 1e9:.3f} GB"
    return str(value)


def _directory(model: str) -> Path:
    """Return the directory to describe; only a GGUF has to be quantised to have one."""
    from baichuan2_tpu.resolve import KNOWN_MODELS

    path = Path(model).expanduser()
    return path if model not in KNOWN_MODELS and path.is_dir() else resolve(model)


def _describe(directory: Path, context: int | None, wished: QuantizationConfig) -> dict[str, object]:
    """Return everything that is shown, by its name in the JSON form."""
    from baichuan2_tpu.memory import machine_memory_bytes, memory_need

    stored = read_config(directory)
    quantization = stored.quantization or wished
    need = memory_need(replace(stored, quantization=quantization))
    tokens = context or stored.max_context
    files = [file for kind in _WEIGHT_FILES for file in directory.glob(kind)]
    return {
        "path": str(directory),
        "is_quantized": stored.quantization is not None,
        **_shapes(stored),
        "bits": quantization.bits,
        "head_bits": quantization.head_bits,
        "group_size": quantization.group_size,
        "disk_bytes": sum(file.stat().st_size for file in files),
        "weight_bytes": need.weight_bytes,
        "context": tokens,
        "kv_cache_bytes": tokens * need.kv_bytes_per_token,
        "memory_bytes": need.total_bytes(tokens),
        "machine_memory_bytes": machine_memory_bytes(),
    }


def _shapes(config: ModelConfig) -> dict[str, object]:
    """Return the dimensions a user may want to know."""
    return {
        "layers": config.layers,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "heads": config.heads,
        "kv_heads": config.kv_heads,
        "head_size": config.head_size,
        "vocabulary_size": config.vocabulary_size,
        "position": config.position,
        "max_context": config.max_context,
    }
