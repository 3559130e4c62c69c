"""From what a user calls a model to the directory of a quantised checkpoint or of a compiled bundle.

A model is a path or a known name. A quantised checkpoint and a bundle are used where they lie; a float
checkpoint or a GGUF is quantised once into the user's cache, under a name made from its files, the bits and
the group size.
Not here: quantising itself (``quantize``), downloading (``fetch``), opening engines (``engine.registry``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from baichuan2_tpu import __version__
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.fetch import DEMO, cache_folder, fetch_demo
from baichuan2_tpu.quantize import Progress, quantize

__all__ = ["KNOWN_MODELS", "KnownModel", "ResolveSettings", "find_source", "resolve_model"]

Bits = Literal[4, 8]
Notice = Callable[[str], None]

_DEFAULT_BITS: Bits = 4
_KEY_DIGITS = 12
_SOURCE_FILES = ("*.json", "*.model", "*.safetensors", "*.bin", "*.gguf")


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A model that can be fetched: what it is, what it is pinned to, and the bits that keep its quality."""

    description: str
    fetch: Callable[[Notice], Path]
    sha256: str
    bits: Bits


KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType(
    {
        "demo": KnownModel(
            description="SmolLM2-135M-Instruct, 93 MB to fetch",
            fetch=fetch_demo,
            sha256=DEMO.file_sha256,
            bits=8,  # its 135M weights are 4-bit already and lose too much the second time
        )
    }
)


@dataclass(frozen=True, slots=True)
class ResolveSettings:
    """How a model that is not quantised yet is quantised; ``bits`` None leaves it to the model."""

    bits: Bits | None = None
    group_size: int = 64
    workers: int = 2


def find_source(model: str, notice: Notice) -> Path:
    """Return the path of a model's files, fetched first if it is a known name.

    Raises: RequestError for what is neither; FetchError.
    """
    if model in KNOWN_MODELS:
        return KNOWN_MODELS[model].fetch(notice)
    path = Path(model).expanduser()
    if path.exists():
        return path
    raise RequestError(
        f"{model!r} is no path that exists, and no known model; give a checkpoint or bundle directory, "
        f"a .gguf file, or one of: {', '.join(KNOWN_MODELS)}"
    )


def resolve_model(
    model: str,
    settings: ResolveSettings | None = None,
    *,
    notice: Notice,
    progress: Progress | None = None,
) -> Path:
    """Return the directory of a quantised checkpoint, or of a compiled bundle, for ``model``.

    A known name goes before a path of that name: write ``./demo`` for a folder called demo.
    Side effect: a model that is not quantised is quantised into the user's cache, once.
    Raises: RequestError, FetchError, CheckpointError.
    """
    settings = settings or ResolveSettings()
    known = KNOWN_MODELS.get(model)
    if known is None:
        path = find_source(model, notice)
        if identify(path) in ("quantized", "bundle", "bmodel"):
            return path
        name, fingerprint, bits = path.resolve().stem, _fingerprint(path), settings.bits or _DEFAULT_BITS
    else:
        name, fingerprint, bits = model, known.sha256, settings.bits or known.bits
    cached = _cached_path(name, fingerprint, bits, settings.group_size)
    if not cached.exists():
        source = find_source(model, notice)
        notice(f"quantising {model} to {bits} bits (once, into {cached})")
        quantize(
            source,
            cached,
            bits=bits,
            group_size=settings.group_size,
            workers=settings.workers,
            progress=progress,
        )
    return cached


def _fingerprint(path: Path) -> str:
    """Describe a model's files without reading them: names, sizes and times of change."""
    files = [path] if path.is_file() else sorted({file for kind in _SOURCE_FILES for file in path.glob(kind)})
    described = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _cached_path(name: str, fingerprint: str, bits: Bits, group_size: int) -> Path:
    """Name a quantised checkpoint in the cache: readable in front, unmistakable behind."""
    key = hashlib.sha256(f"{__version__} {fingerprint}".encode()).hexdigest()[:_KEY_DIGITS]
    return cache_folder() / "models" / f"{name}-w{bits}g{group_size}-{key}"
