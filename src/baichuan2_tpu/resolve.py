"""From what a user calls a model to where it lies and what kind it is: a ``Located``, asked once, passed on.

A model is a path or a known name, which is fetched first. A quantised checkpoint and a bundle are used where
they lie; a float checkpoint or a GGUF is quantised once into the user's cache, and what another tool
quantised is repacked into it, under a name made from its files, the bits and the group size. If everything is
in place, neither HTTP nor the quantiser is imported.
Not here: quantising itself (``quantize``), downloading (``fetch``), opening the model (``model``).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from baichuan2_tpu import __version__
from baichuan2_tpu.checkpoint.adapter_settings import find_adapter
from baichuan2_tpu.checkpoint.gguf_parts import list_parts, model_name
from baichuan2_tpu.checkpoint.identify import WEIGHT_FILES, Located, identify
from baichuan2_tpu.config import Method, QuantizationConfig, default_method
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.fetch import (
    DEMO,
    HUB_MODELS,
    VENDOR_MODELS,
    DownloadProgress,
    cache_folder,
    fetch_demo,
)
from baichuan2_tpu.files import hash_blocks
from baichuan2_tpu.shapes import SHAPES

if TYPE_CHECKING:
    from baichuan2_tpu.quantize import Progress

__all__ = ["KNOWN_MODELS", "FetchWish", "KnownModel", "ResolveSettings", "find_source", "resolve_model"]

Bits = Literal[4, 8]
Notice = Callable[[str], None]

_DEFAULT_BITS: Bits = 4
_KEY_DIGITS = 12
_log = logging.getLogger(__name__)
_FINISHED = ("quantized", "bundle", "bmodel")
"""Kinds that are used where they lie, and that nothing can be merged into."""

_SOURCE_FILES = ("*.json", "*.jinja", "*.model", "*.gguf", *WEIGHT_FILES)


@dataclass(frozen=True, slots=True)
class FetchWish:
    """How a fetch reports what it does, and what must be free on the disk besides for what is made of it."""

    notice: Notice
    progress: DownloadProgress | None = None
    spare_bytes: int = 0


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be fetched: what it is, what identifies it, the bits that keep its quality."""

    description: str
    fetch: Callable[[FetchWish], Path]
    fingerprint: str
    bits: Bits | None
    """None for a model that is compiled already."""
    shape: str | None = None
    """Its dimensions, by their name in ``SHAPES``; None where the result takes little of a disk."""


def _fetch_demo(wish: FetchWish) -> Path:
    return fetch_demo(wish.notice)


def _fetch_from_hub(name: str, wish: FetchWish) -> Path:
    from baichuan2_tpu.fetch.models import FetchSettings, fetch_model  # noqa: PLC0415

    settings = FetchSettings(spare_bytes=wish.spare_bytes)
    return fetch_model(name, settings, notice=wish.notice, progress=wish.progress)


def _fetch_from_vendor(name: str, wish: FetchWish) -> Path:
    from baichuan2_tpu.fetch.vendor import fetch_vendor_model  # noqa: PLC0415

    return fetch_vendor_model(name, notice=wish.notice, progress=wish.progress)


KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType(
    {
        "demo": KnownModel(
            "SmolLM2-135M-Instruct, 93 MB to fetch",
            _fetch_demo,
            DEMO.file_sha256,
            bits=8,  # its 135M weights are 4-bit already and lose too much the second time
        )
    }
    | {
        name: KnownModel(
            f"{model.description}, {model.about_bytes / 1e9:.1f} GB to fetch",
            partial(_fetch_from_hub, name),
            model.repository,
            bits=_DEFAULT_BITS,
            shape=model.shape,
        )
        for name, model in HUB_MODELS.items()
    }
    | {
        name: KnownModel(
            f"{model.description}, at most {model.room_bytes / 1e9:.1f} GB to fetch",
            partial(_fetch_from_vendor, name),
            model.bmodel,
            bits=None,
        )
        for name, model in VENDOR_MODELS.items()
    }
)


@dataclass(frozen=True, slots=True)
class ResolveSettings:
    """How a model that is not quantised yet is quantised; ``bits`` None leaves it to the model."""

    bits: Bits | None = None
    group_size: int = 64
    workers: int = 2


def find_source(
    model: str,
    notice: Notice,
    progress: DownloadProgress | None = None,
    *,
    spare_bytes: int = 0,
    adapters: Sequence[Path] = (),
) -> Located:
    """Return where a model's files lie, to be quantised; fetched first if it is a known name.

    ``spare_bytes`` must be free in the user's cache besides. An adapter that lies beside the weights and is
    not one of ``adapters``, which are merged, is named in a notice.
    Raises: RequestError for what is neither, or a known name that is compiled already; FetchError;
    CheckpointError for a path that holds no model.
    """
    known = KNOWN_MODELS.get(model)
    if known is not None:
        if known.bits is None:
            raise RequestError(f"{model} is compiled already; give a checkpoint, such as baichuan2-7b-chat")
        return identify(known.fetch(FetchWish(notice, progress, spare_bytes)))
    path = Path(model).expanduser()
    if model and path.exists():  # no name at all would be this directory
        located = identify(path)
        _notice_adapter(located, path, adapters, notice)
        return located
    raise RequestError(
        f"{model!r} is neither a path that exists nor a known model; give a checkpoint or bundle directory, "
        f"a .gguf file, or one of: {', '.join(KNOWN_MODELS)}"
    )


def resolve_model(
    model: str,
    settings: ResolveSettings | None = None,
    *,
    notice: Notice,
    progress: Progress | None = None,
    fetch_progress: DownloadProgress | None = None,
) -> Located:
    """Return where the quantised checkpoint or the compiled model behind ``model`` lies.

    A known name goes before a path of that name: write ``./demo`` for a folder called demo.
    Side effect: what is not fetched or not quantised yet is, into the user's cache, once.
    Raises: RequestError, FetchError, CheckpointError.
    """
    settings = settings or ResolveSettings()
    known, source = KNOWN_MODELS.get(model), None
    if known is None:
        source = find_source(model, notice)
        if source.kind in _FINISHED:
            return source
        name, fingerprint = model_name(source.path.resolve()), _fingerprint(source.path)
        bits = settings.bits or (None if source.kind == "foreign" else _DEFAULT_BITS)
    elif known.bits is None:
        return identify(known.fetch(FetchWish(notice, fetch_progress)))
    else:
        name, fingerprint, bits = model, known.fingerprint, settings.bits or known.bits
    group_size = None if bits is None else settings.group_size
    method = None if bits is None or (source and source.kind == "foreign") else default_method(bits)
    cached = _cached_path(name, fingerprint, _name_form(bits, group_size, method))
    if not cached.exists():
        from baichuan2_tpu.quantize import quantize  # noqa: PLC0415

        if source is None:
            spare_bytes = _result_bytes(known, bits or _DEFAULT_BITS, settings.group_size)
            source = find_source(model, notice, fetch_progress, spare_bytes=spare_bytes)
        work = f"repacking {model}" if bits is None else f"quantising {model} to {bits} bits"
        notice(f"{work} (once, into {cached})")
        quantize(
            source.path,
            cached,
            bits=bits,
            group_size=group_size,
            workers=settings.workers,
            progress=progress,
            notice=notice if known is None else _log.info,  # its bits are chosen already
        )
        if known is not None and known.shape is not None:
            notice(f"{source.path} is no longer needed for this and can be deleted")
    return Located(cached, "quantized")


def _notice_adapter(located: Located, path: Path, adapters: Sequence[Path], notice: Notice) -> None:
    """Name an adapter beside a model, which is not part of it."""
    base = find_adapter(path)
    if base is not None and path.resolve() not in [adapter.resolve() for adapter in adapters]:
        is_finished = located.kind in _FINISHED
        step = "merge it into the float checkpoint MODEL" if is_finished else "merge it"
        notice(
            f"{path} also holds a LoRA adapter (trained on {base}), which is not used; to {step}: "
            f"baichuan2 quantize {'MODEL' if is_finished else path} DST --adapter {path}"
        )


def _result_bytes(known: KnownModel | None, bits: Bits, group_size: int) -> int:
    """Return what a known model takes on the disk when it is quantised."""
    if known is None or known.shape is None:
        return 0
    from baichuan2_tpu.quantize.plan import make_plan  # noqa: PLC0415

    return make_plan(SHAPES[known.shape], QuantizationConfig(bits, group_size)).size_bytes


def _fingerprint(path: Path) -> str:
    """Describe a model's files without reading them: names, sizes and times of change."""
    found = {file for kind in _SOURCE_FILES for file in path.glob(kind)}
    files = list_parts(path) if path.is_file() else sorted(found)
    described = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hash_blocks([json.dumps(described).encode()])


def _name_form(bits: Bits | None, group_size: int | None, method: Method | None) -> str:
    """Name what is asked for; ``method`` None depends on what another tool made of the weights."""
    if bits is None:
        return "repacked"
    return f"w{bits}g{group_size}" + ("" if method is None else f"-{method}")


def _cached_path(name: str, fingerprint: str, form: str) -> Path:
    """Name a quantised checkpoint in the cache: readable in front, unmistakable behind."""
    key = hash_blocks([f"{__version__} {fingerprint}".encode()])[:_KEY_DIGITS]
    return cache_folder() / "models" / f"{name}-{form}-{key}"
