"""The manifest of a compiled bundle: what was compiled, for what, from what, and the digest of every file.

``compile`` writes it, the engines and ``estimate`` read it. Not here: compiling, loading.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from typing_extensions import Self

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import ArtifactError, CheckpointError, ContextLengthError
from baichuan2_tpu.files import FileDigest, check_plain_name, find_json, read_values, write_json
from baichuan2_tpu.quoting import quote

__all__ = ["MANIFEST_NAME", "Manifest", "NetCost", "find_bmodel", "is_bundle"]

MANIFEST_NAME = "manifest.json"
_FORMAT = 1
_MOST_DEVICES = 64

HeadOutput = Literal["logits", "token", "sample"]
EmbeddingPlace = Literal["disk", "device"]
HeadKind = Literal["w4", "w8", "f16"]
Float = Literal["float16", "bfloat16"]


@dataclass(frozen=True, slots=True)
class NetCost:
    """What the compiler's cycle model says of one launch of one stage of one net.

    Units: ``tokens`` new tokens a launch; ``history`` tokens of the compiled KV history (0 for none).
    """

    net: str
    tokens: int
    history: int
    time_ms: float
    read_bytes: int
    flops: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that an engine must know of a bundle before it loads it."""

    model: ModelConfig
    bits: Literal[4, 8, 16]
    head: HeadKind
    head_output: HeadOutput
    embedding: EmbeddingPlace
    dtype: Float
    """Of activations and of keys and values."""
    context: int
    prefill: tuple[int, ...]
    """New tokens of each compiled stage above one, ascending; decoding is a stage of one token."""
    devices: int
    chip: str
    bmodel: str
    """Name of the bmodel in the bundle's folder."""
    device_bytes: int
    """Device memory for weights, instructions and the nets' own inputs and outputs."""
    source: str
    """Name and sha256 of the checkpoint's config and weight index: "NAME sha256:…"."""
    tools: Mapping[str, str]
    """Version by tool."""
    costs: tuple[NetCost, ...]
    files: Mapping[str, FileDigest]
    """Every other file of the bundle, by its name."""

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest of the bundle in ``folder``; the files beside it are not opened.

        Raises: ArtifactError naming the file and the key.
        """
        path = folder / MANIFEST_NAME
        values = find_json(path, ArtifactError, "compile the bundle again")
        if values is None:
            raise ArtifactError(f"{folder}: holds no {MANIFEST_NAME}; make a bundle with baichuan2 compile")
        return cls._from_json(values, path)

    def write(self, folder: Path) -> None:
        """Write the manifest into ``folder``, all at once."""
        write_json(folder / MANIFEST_NAME, asdict(self) | {"format": _FORMAT, "model": self.model.to_json()})

    def check_sizes(self, folder: Path) -> None:
        """Check that every file of the bundle is there and of its size, which takes no time.

        Raises: ArtifactError naming the first file that is missing or differs.
        """
        for name, wanted in self.files.items():
            path = folder / name
            if not path.is_file():
                raise ArtifactError(f"{path}: is missing; compile the bundle again or copy all of it")
            size = path.stat().st_size
            if size != wanted.nbytes:
                raise ArtifactError(
                    f"{path}: has {size} bytes, {MANIFEST_NAME} says {wanted.nbytes}; copy the bundle again"
                )

    def verify(self, folder: Path, *, digest_limit_bytes: int | None = None) -> None:
        """Compare every file of the bundle with its digest; larger ones than the limit with their size alone.

        Raises: ArtifactError naming the first file that is missing or differs.
        """
        self.check_sizes(folder)
        for name, wanted in self.files.items():
            path = folder / name
            is_read = digest_limit_bytes is None or wanted.nbytes <= digest_limit_bytes
            if is_read and not wanted.is_at(path):
                raise ArtifactError(
                    f"{path}: its sha256 is not that of {MANIFEST_NAME}; copy the bundle again"
                )

    def checked_context(self, context: int | None) -> int:
        """Return the context to run with: the compiled one, or a shorter one that is asked for.

        Raises: ContextLengthError naming both numbers.
        """
        if context is not None and context > self.context:
            raise ContextLengthError(
                f"a context of {context} tokens is asked for, the bundle was compiled for {self.context}; "
                f"use --context {self.context} or less, or compile with --context {context}"
            )
        return context or self.context

    @classmethod
    def _from_json(cls, values: Mapping[str, object], path: Path) -> Self:
        fields = {**values}
        if fields.pop("format", None) != _FORMAT:
            raise ArtifactError(f"{path}: is not of format {_FORMAT}; compile the bundle again")
        try:
            manifest = read_values(cls, fields, {ModelConfig: _read_model})
            _check_values(manifest)
        except (ValueError, CheckpointError) as error:
            raise ArtifactError(f"{path}: {error}; compile the bundle again") from error
        return manifest


def is_bundle(path: Path) -> bool:
    """Tell whether a compiled bundle lies at ``path``."""
    return (path / MANIFEST_NAME).is_file()


def find_bmodel(path: Path) -> Path | None:
    """Return the bmodel of a folder without manifest, as the vendor ships it; None beside weights.

    Raises: ArtifactError when there are several to choose from.
    """
    is_other = is_bundle(path) or any(any(path.glob(kind)) for kind in ("*.safetensors", "*.bin"))
    found = [] if is_other else sorted(path.glob("*.bmodel"))
    if len(found) > 1:
        names = ", ".join(one.name for one in found)
        raise ArtifactError(
            f"{path}: holds {len(found)} bmodels ({names}); put each into a folder of its own with "
            "the tokenizer.model, and name that folder"
        )
    return found[0] if found else None


def _read_model(values: Mapping[str, object]) -> ModelConfig:
    return ModelConfig.from_json(values, file="model")


def _check_values(manifest: Manifest) -> None:
    """Check what no type says: ranges, and names that stay in the folder.

    Raises: ValueError.
    """
    for name in (manifest.bmodel, *manifest.files):
        check_plain_name(name)
    if not 1 <= manifest.context <= manifest.model.max_context:
        raise ValueError(
            f"context is {manifest.context}, the model has {manifest.model.max_context} positions"
        )
    if not 1 <= manifest.devices <= _MOST_DEVICES:
        raise ValueError(f"devices is {manifest.devices}, allowed are 1 to {_MOST_DEVICES}")
    for shorter, longer in itertools.pairwise((1, *manifest.prefill, manifest.context + 1)):
        if shorter >= longer:
            stages = quote(list(manifest.prefill))
            raise ValueError(f"prefill is {stages}, allowed are ascending lengths from 2 to the context")
