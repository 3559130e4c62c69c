"""``baichuan2 info``: what a model is and what it will take, before anything is loaded.

Not here: counting the bytes (``memory``).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.models import resolve
from baichuan2_tpu.cli.terminal import write_result
from baichuan2_tpu.errors import RequestError

if TYPE_CHECKING:
    from baichuan2_tpu.checkpoint.foreign.stored_form import StoredForm
    from baichuan2_tpu.checkpoint.identify import Located
    from baichuan2_tpu.config import ModelConfig, QuantizationConfig
    from baichuan2_tpu.manifest import Manifest

__all__ = ["info"]


def info(
    model: options.Model,
    *,
    context: options.Context = None,
    bits: options.Bits = options.BitsName.FOUR,
    head_bits: options.HeadBits = options.BitsName.EIGHT,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compare every file of a bundle with its sha256.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Show what a model is and how much memory it will take.

    Nothing is loaded or quantised: a float checkpoint is counted as if it were quantised to --bits and
    --head-bits. For a compiled bundle the manifest is shown; --verify reads all files.
    """
    from baichuan2_tpu.config import QuantizationConfig

    located = _locate(model)
    if verify and located.kind != "bundle":
        raise typer.BadParameter("--verify is for a compiled bundle")
    if located.kind == "bundle":
        facts = _describe_bundle(located.path, context, is_verified=verify)
    elif located.bmodel is not None:
        facts = _describe_bmodel(located.bmodel)
    else:
        facts = _describe(located, context, QuantizationConfig(bits.bits, head_bits=head_bits.bits))
    if as_json:
        write_result(json.dumps(facts, ensure_ascii=False) + "\n")
        return
    for name, value in facts.items():
        write_result(f"{name:<24}{_format_value(name, value)}\n")


def _format_value(name: str, value: object) -> str:
    """Write a value for a person."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(str(item) for item in cast("list[object]", value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in cast("dict[str, object]", value).items())
    if isinstance(value, int) and name.endswith("_bytes"):
        return f"{value / 1e9:.3f} GB"
    return str(value)


def _locate(model: str) -> Located:
    """Return what to describe; only a GGUF has to be quantised first, to have a directory.

    Raises: RequestError for a model that would have to be fetched first, with its size.
    """
    from baichuan2_tpu.checkpoint.identify import identify
    from baichuan2_tpu.fetch import find_fetched
    from baichuan2_tpu.resolve import KNOWN_MODELS

    path = Path(model).expanduser()
    if model not in KNOWN_MODELS:
        return identify(path, needs_weights=False) if path.is_dir() else resolve(model)
    if model == "demo":
        return resolve(model)
    fetched = find_fetched(model)
    if fetched is None:
        description = KNOWN_MODELS[model].description
        raise RequestError(f"{model} is not here yet ({description}); run baichuan2 fetch {model}")
    return identify(fetched)


def _describe(located: Located, context: int | None, assumed: QuantizationConfig) -> dict[str, object]:
    """Return everything that is shown, by its name in the JSON form."""
    from baichuan2_tpu.checkpoint.identify import WEIGHT_FILES
    from baichuan2_tpu.config import choose_kv_bits
    from baichuan2_tpu.memory import machine_memory_bytes, memory_need
    from baichuan2_tpu.model import read_config
    from baichuan2_tpu.quantize.repack import choose_settings

    stored, foreign = read_config(located), _read_foreign(located)
    quantization = stored.quantization or assumed
    if foreign is not None:
        quantization = choose_settings(foreign, None, None, None, "search")
    need = memory_need(replace(stored, quantization=quantization), choose_kv_bits(None))
    tokens = context or stored.max_context
    files = [file for kind in WEIGHT_FILES for file in located.path.glob(kind)]
    return {
        "path": str(located.path),
        "is_quantized": stored.quantization is not None or foreign is not None,
        **({"quantized_by": foreign.title, "integers_are_kept": not foreign.reason} if foreign else {}),
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


def _read_foreign(located: Located) -> StoredForm | None:
    """Return how another tool quantised a checkpoint; None for floats, and where no weights are there."""
    if located.kind != "foreign":
        return None
    from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
    from baichuan2_tpu.checkpoint.weight_files import has_weights

    return FloatCheckpoint.open(located.path).stored if has_weights(located.path) else None


def _describe_bundle(directory: Path, context: int | None, *, is_verified: bool) -> dict[str, object]:
    """Return what the manifest of a bundle says, after a check that its files are those it names."""
    from baichuan2_tpu.manifest import Manifest
    from baichuan2_tpu.memory import memory_need

    manifest = Manifest.read(directory)
    check = manifest.verify if is_verified else manifest.check_sizes
    check(directory)
    tokens = manifest.checked_context(context)
    return {
        "path": str(directory),
        "is_bundle": True,
        "is_verified": is_verified,
        **_shapes(manifest.model),
        "chip": manifest.chip,
        "devices": manifest.devices,
        "bits": manifest.bits,
        "head": manifest.head,
        "head_output": manifest.head_output,
        "embedding": manifest.embedding,
        "dtype": manifest.dtype,
        "group_size": manifest.group_size,
        "stages": [f"{stage.tokens}x{stage.history}" for stage in manifest.stages],
        "head_rows": list(manifest.head_rows),
        "layers_per_net": manifest.layers_per_net,
        "disk_bytes": sum(file.nbytes for file in manifest.files.values()),
        "device_bytes": manifest.device_bytes,
        "context": tokens,
        "compiled_context": manifest.context,
        "rows": manifest.rows,
        "history_bytes": manifest.rows * memory_need(manifest.model).kv_bytes_per_token,
        **_times(manifest),
        "source": manifest.source,
        "tools": dict(manifest.tools),
    }


def _times(manifest: Manifest) -> dict[str, object]:
    """Return what the cycle model says of a token, where the manifest has costs."""
    from baichuan2_tpu.estimate import estimate

    if not manifest.costs:
        return {}
    figures = estimate(manifest, ())
    return {
        "launches_per_token": figures.decode.total.launches,
        "estimated_token_ms": {
            f"{rows} rows": round(figures.answers[1, rows].total.time_ms, 1) for rows in figures.histories
        },
    }


def _describe_bmodel(bmodel: Path) -> dict[str, object]:
    """Return what a bmodel without a manifest says of itself before it is loaded."""
    from baichuan2_tpu.bmodel.header import BmodelFile
    from baichuan2_tpu.engine.compiled.open_vendor_bmodel import read_vendor_config

    file = BmodelFile.read(bmodel)
    return {
        "path": str(bmodel),
        "is_bundle": False,
        **_shapes(read_vendor_config(bmodel.parent)),
        "chip": file.chip,
        "devices": file.devices,
        "disk_bytes": bmodel.stat().st_size,
        "device_bytes": file.device_bytes,
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
