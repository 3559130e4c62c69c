"""What one model needs of a machine at one context: where it runs and how much memory it takes there.

Not here: loading it, what the machine has (``host``, ``tpu_memory``).
Source: of the vendor's minimum, the README of sample/Baichuan2 in sophgo/sophon-demo.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from baichuan2_tpu.bmodel.header import BmodelFile
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.layout import pad_vocabulary
from baichuan2_tpu.compile.plan import default_layers_per_net, make_plan
from baichuan2_tpu.compile.settings import CompileSettings, default_stages
from baichuan2_tpu.config import ModelConfig, QuantizationConfig, choose_kv_bits
from baichuan2_tpu.engine.compiled.open_bundle import buffer_bytes
from baichuan2_tpu.engine.compiled.open_vendor_bmodel import read_vendor_config
from baichuan2_tpu.errors import ContextLengthError, RequestError
from baichuan2_tpu.manifest import Manifest
from baichuan2_tpu.memory import memory_need
from baichuan2_tpu.resolve import KNOWN_MODELS
from baichuan2_tpu.shapes import SHAPES

__all__ = ["VENDOR_MINIMUM_BYTES", "Need", "read_need"]

VENDOR_MINIMUM_BYTES = {8: 9216 << 20, 4: 6144 << 20}
"""Of all regions together, by the bits of Baichuan2-7B at a context of 512."""

_VENDOR_CONTEXT = 512
"""What the vendor's files are compiled for; a bmodel's header does not tell."""
_VENDOR_NAME = re.compile(r"-int([48])-bmodel$")
_BITS: Literal[4] = 4
"""Of a model that is not quantised yet, unless the user asks for others."""


@dataclass(frozen=True, slots=True)
class Need:
    """Units: bytes; ``device_bytes`` None is not known. ``context`` and ``rows`` count tokens."""

    title: str
    runs_on: Literal["cpu", "tpu"]
    context: int
    host_bytes: int
    """Weights and KV cache on the cpu; of a compiled model, the embedding that is mapped."""
    device_bytes: int | None
    is_estimate: bool
    """True where ``device_bytes`` is what it would take if it were compiled."""
    chip: str = ""
    devices: int = 1
    bits: int = 0
    is_baichuan2_7b: bool = False
    rows: int = 0
    """What all sequences together can hold on the device; 0 where each has memory of its own."""
    compiled: Path | None = None
    """The folder of a bundle or bmodel that is at hand; None for a checkpoint, or what is not fetched."""
    has_manifest: bool = False
    """Whether it is a bundle, whose layers can be compared with a checkpoint's."""


def read_need(model: str, context: int | None = None, rows: int | None = None) -> Need:
    """Count what ``model`` needs: a path, or a known name, which is not fetched for this.

    As in ``resolve``, a known name goes before a path of that name. ``rows`` are those that a checkpoint
    would be compiled with.
    Raises: RequestError for what is neither, and for rows of what is compiled already; ArtifactError,
    CheckpointError, ContextLengthError.
    """
    need = _read_need(model, context, rows)
    if rows is not None and rows != need.rows:
        raise RequestError(f"{model}: --rows is for a checkpoint that can be compiled; leave it out")
    return need


def _read_need(model: str, context: int | None, rows: int | None) -> Need:
    if model in KNOWN_MODELS:
        return _known_need(model, context, rows)
    path = Path(model).expanduser()
    if not path.exists():
        raise RequestError(
            f"{model!r} is neither a path that exists nor a known model; give a checkpoint or bundle "
            f"directory, or one of: {', '.join(KNOWN_MODELS)}"
        )
    located = identify(path)
    if located.kind == "bundle":
        return _bundle_need(path, context)
    if located.bmodel is not None:
        return _bmodel_need(located.bmodel, context)
    if located.kind == "gguf":
        return Need(f"{path.name}: a GGUF, quantised once when it is used", "cpu", 0, 0, None, True)
    config = ModelConfig.read(path / "config.json")
    if located.kind == "foreign":
        # Imported here: the doctor also examines machines where what quantises does not load.
        from baichuan2_tpu.quantize.repack import choose_settings  # noqa: PLC0415

        settings = choose_settings(FloatCheckpoint.open(path).stored, None, None, None, "search")
        return _checkpoint_need(path.name, config, context, rows, repacked=settings)
    return _checkpoint_need(path.name, config, context, rows)


def _known_need(model: str, context: int | None, rows: int | None) -> Need:
    compiled = _VENDOR_NAME.search(model)
    if compiled:
        _check_context(model, context, _VENDOR_CONTEXT)
        return _vendor_need(model, int(compiled[1]))
    shape = next((shape for shape in SHAPES if model.startswith(shape)), None)
    if shape is None:
        return Need(f"{model}: fetched when it is first used", "cpu", 0, 0, None, True)
    return _checkpoint_need(model, SHAPES[shape], context, rows)


def _vendor_need(model: str, bits: int) -> Need:
    """Take the vendor's word for a bmodel of its own that is not fetched yet."""
    return Need(
        title=f"{model}: fetched when it is first used, compiled by the vendor for context {_VENDOR_CONTEXT}",
        runs_on="tpu",
        context=_VENDOR_CONTEXT,
        host_bytes=0,
        device_bytes=VENDOR_MINIMUM_BYTES[bits],
        is_estimate=False,
        bits=bits,
        is_baichuan2_7b=True,
    )


def _checkpoint_need(
    name: str,
    config: ModelConfig,
    context: int | None,
    rows: int | None,
    *,
    repacked: QuantizationConfig | None = None,
) -> Need:
    """Count what the cpu holds, and what the device would; ``repacked`` is for another tool's integers."""
    counted = config
    if repacked or not config.quantization:
        padded = pad_vocabulary(config.vocabulary_size)
        assumed = repacked or QuantizationConfig(_BITS)
        counted = replace(config, quantization=assumed, vocabulary_size=padded)
    bits = counted.quantization.bits if counted.quantization else 0
    _check_context(name, context, config.max_context)
    tokens = context or config.max_context
    device_rows = max(rows or tokens, tokens)
    device_bytes = _compiled_bytes(counted, tokens, device_rows)
    state = "quantised checkpoint," if config.quantization else "not quantised yet, counted as"
    if repacked:
        state = "quantised by another tool, repacked once when it is used,"
    return Need(
        title=f"{name}: {state} {config.layers} layers of {bits} bits, context {tokens}",
        runs_on="cpu",
        context=tokens,
        host_bytes=memory_need(counted, choose_kv_bits(None)).total_bytes(tokens),
        device_bytes=device_bytes,
        is_estimate=True,
        rows=device_rows if device_bytes is not None else 0,
        bits=bits,
        is_baichuan2_7b=_is_baichuan2_7b(config),
    )


def _compiled_bytes(config: ModelConfig, context: int, rows: int) -> int | None:
    """Return what a bundle would take on the device, None where none can be compiled."""
    if config.quantization is None:
        return None
    settings = CompileSettings(
        bits=config.quantization.bits,
        head="w8" if config.quantization.head_bits == 8 else "w4",
        context=context,
        rows=rows,
        stages=default_stages(context, rows),
    )
    settings = replace(settings, layers_per_net=default_layers_per_net(config, settings))
    try:
        settings.check(config)
    except RequestError:
        return None
    return make_plan(config, settings, jobs=1).device_bytes


def _bundle_need(folder: Path, context: int | None) -> Need:
    """Read the manifest; the history of all compiled rows is part of the nets' own memory."""
    manifest = Manifest.read(folder)
    manifest.check_sizes(folder)
    tokens, model = manifest.checked_context(context), manifest.model
    return Need(
        title=f"{folder.name}: bundle, {model.layers} layers of {manifest.bits} bits, context {tokens}",
        runs_on="tpu",
        context=tokens,
        host_bytes=memory_need(model).embedding_bytes if manifest.embedding == "disk" else 0,
        device_bytes=manifest.device_bytes + buffer_bytes(manifest),
        is_estimate=False,
        chip=manifest.chip,
        devices=manifest.devices,
        bits=manifest.bits,
        is_baichuan2_7b=_is_baichuan2_7b(model),
        rows=manifest.rows,
        compiled=folder,
        has_manifest=True,
    )


def _bmodel_need(bmodel: Path, context: int | None) -> Need:
    """Read the header, and add the history, which the engine allocates beside such nets."""
    file, config = BmodelFile.read(bmodel), read_vendor_config(bmodel.parent)
    _check_context(bmodel.name, context, config.max_context)
    tokens = context or _VENDOR_CONTEXT
    bits = next((bits for bits in (4, 8) if f"int{bits}" in bmodel.name.lower()), 0)
    return Need(
        title=f"{bmodel.name}: bmodel without manifest, context {tokens}",
        runs_on="tpu",
        context=tokens,
        host_bytes=0,
        device_bytes=file.device_bytes + tokens * memory_need(config).kv_bytes_per_token,
        is_estimate=False,
        chip=file.chip,
        devices=file.devices,
        bits=bits,
        is_baichuan2_7b=_is_baichuan2_7b(config),
        compiled=bmodel.parent,
    )


def _check_context(name: str, context: int | None, longest: int) -> None:
    """Check a context against the longest that the model takes, as its engine would.

    Raises: ContextLengthError naming both numbers.
    """
    if context is not None and context > longest:
        raise ContextLengthError(
            f"a context of {context} tokens is asked for, {name} allows 1 to {longest}; "
            f"use --context {longest} or less"
        )


def _is_baichuan2_7b(config: ModelConfig) -> bool:
    seven = SHAPES["baichuan2-7b"]
    return (config.layers, config.hidden_size, config.vocabulary_size) == (
        seven.layers,
        seven.hidden_size,
        seven.vocabulary_size,
    )
