"""Bundles of a tiny random model for tests of everything that runs or reads one, compiled when asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

from baichuan2_tpu.compile.driver import BuildSettings, compile_bundle
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.toolchain import Toolchain
from models.tiny_checkpoint import rope_config, write_official
from models.tiny_tokenizer import write_sentencepiece

__all__ = ["TINY_SETTINGS", "TinyBundle", "TinyBundles", "write_tiny_checkpoint"]

TINY_SETTINGS = CompileSettings(
    bits=4,
    head="w8",
    context=256,
    rows=512,
    stages=(
        Stage(1, 64),
        Stage(16, 64),
        Stage(1, 256),
        Stage(16, 256),
        Stage(64, 256),
        Stage(1, 512),
        Stage(16, 512),
        Stage(64, 512),
    ),
    head_rows=(1, 4, 16),
    layers_per_net=2,
)
"""Three layers in two nets, and twice as many rows as a conversation can hold."""


@dataclass(frozen=True)
class TinyBundle:
    """A bundle, and the quantised checkpoint with the same integers."""

    checkpoint: Path
    folder: Path


class TinyBundles:
    """Call it with 4 or 8 for the bundle of that many bits; the same call gives the same one."""

    def __init__(self, root: Path, toolchain: Toolchain) -> None:
        self._root = root
        self._toolchain = toolchain
        self._made = cache(self._make)

    def __call__(self, bits: Literal[4, 8] = 4) -> TinyBundle:
        return self._made(bits)

    def _make(self, bits: Literal[4, 8]) -> TinyBundle:
        checkpoint = write_tiny_checkpoint(self._root / f"tiny-w{bits}", bits)
        folder = self._root / f"tiny-w{bits}-bundle"
        settings = replace(TINY_SETTINGS, bits=bits)
        compile_bundle(checkpoint, folder, settings, BuildSettings(self._toolchain))
        return TinyBundle(checkpoint, folder)


def write_tiny_checkpoint(directory: Path, bits: Literal[4, 8]) -> Path:
    """Write a quantised Baichuan2 in small, with a tokenizer; its weights are random."""
    source = directory.with_name(f"{directory.name}-float")
    # More rows than the tokenizer has tokens: packed layers need a multiple of 64.
    write_official(source, rope_config(vocabulary_size=448, layers=3))
    write_sentencepiece(source)
    # By the search, whose integers are the same on every machine: other methods round sums of BLAS.
    quantize(source, directory, bits=bits, method="search")
    return directory
