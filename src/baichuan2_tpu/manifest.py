"""The manifest of a compiled bundle: what was compiled, for what, from what, and the digest of every file.

``compile`` writes it, the engines and ``estimate`` read it. Not here: compiling, loading.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple, cast

from typing_extensions import Self

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import ArtifactError, CheckpointError, ContextLengthError
from baichuan2_tpu.files import FileDigest, check_plain_name, find_json, read_values, write_json
from baichuan2_tpu.quoting import quote

__all__ = ["HEAD_NET", "MANIFEST_NAME", "Manifest", "NetCost", "Stage", "is_bundle"]

MANIFEST_NAME = "manifest.json"
HEAD_NET = "lm_head"
"""The net of the head in a bmodel, and its key among the costs."""
_FORMAT = 2
_MOST_DEVICES = 64
_MOST_ROWS = 1 << 24
_MOST_LAYERS = 1024

HeadOutput = Literal["logits", "token", "sample"]
EmbeddingPlace = Literal["disk", "device"]
HeadKind = Literal["w4", "w8", "f16"]
Float = Literal["float16", "bfloat16"]


class Stage(NamedTuple):
    """The shapes that one launch has: new tokens, and rows of the history that it can read.

    For nets without a history ``history`` is 0; ``tokens`` counts the rows of the head.
    """

    tokens: int
    history: int


@dataclass(frozen=True, slots=True)
class NetCost:
    """What the compiler's cycle model says of one launch of one stage of one net.

    Units: ``tokens`` new tokens per launch, of the head rows; ``history`` rows of the history (0 for none).
    """

    net: str
    tokens: int
    history: int
    time_ms: float
    read_bytes: int
    flops: int

    @property
    def stage(self) -> Stage:
        """The stage that was launched."""
        return Stage(self.tokens, self.history)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that an engine must know of a bundle before it loads it.

    Units: ``context``, ``rows`` and ``head_rows`` count tokens.
    """

    model: ModelConfig
    bits: Literal[4, 8, 16]
    head: HeadKind
    head_output: HeadOutput
    embedding: EmbeddingPlace
    dtype: Float
    """Of activations and of keys and values."""
    context: int
    """What one sequence can hold."""
    rows: int
    """Rows of the history, which all sequences share."""
    stages: tuple[Stage, ...]
    """Of every block net, ascending by history, then by tokens."""
    head_rows: tuple[int, ...]
    """Rows of each stage of the head, ascending."""
    layers_per_net: int
    """Consecutive layers in one block net; the last net may have fewer."""
    group_size: int
    """Columns that share a scale in the nets, which divides the checkpoint's."""
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
        for name, digest in self.files.items():
            path = folder / name
            if not path.is_file():
                raise ArtifactError(f"{path}: is missing; compile the bundle again or copy all of it")
            size = path.stat().st_size
            if size != digest.nbytes:
                raise ArtifactError(
                    f"{path}: has {size} bytes, {MANIFEST_NAME} says {digest.nbytes}; copy the bundle again"
                )

    def verify(self, folder: Path, *, digest_limit_bytes: int | None = None) -> None:
        """Compare every file of the bundle with its digest; larger ones than the limit with their size alone.

        Raises: ArtifactError naming the first file that is missing or differs.
        """
        self.check_sizes(folder)
        for name, digest in self.files.items():
            path = folder / name
            is_read = digest_limit_bytes is None or digest.nbytes <= digest_limit_bytes
            if is_read and not digest.is_at(path):
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
                f"choose a context of {self.context} or less, or compile with --context {context}"
            )
        return context or self.context

    @property
    def block_nets(self) -> tuple[str, ...]:
        """Names of the block nets, in the order of a forward pass."""
        return tuple(f"block_cache_{net}" for net in range(-(-self.model.layers // self.layers_per_net)))

    @classmethod
    def _from_json(cls, values: Mapping[str, object], path: Path) -> Self:
        content = {**values}
        version = content.pop("format", None)
        if isinstance(version, int) and version < _FORMAT:
            raise ArtifactError(
                f"{path}: has format {version}, made by an older version; this one reads format {_FORMAT}: "
                "compile the bundle again"
            )
        if version != _FORMAT:
            raise ArtifactError(f"{path}: is not of format {_FORMAT}; compile the bundle again")
        try:
            manifest = read_values(cls, content, {ModelConfig: _read_model, Stage: _read_stage})
            _check_values(manifest)
        except (ValueError, CheckpointError) as error:
            raise ArtifactError(f"{path}: {error}; compile the bundle again") from error
        return manifest


def is_bundle(path: Path) -> bool:
    """Tell whether a compiled bundle lies at ``path``."""
    return (path / MANIFEST_NAME).is_file()


def _read_model(values: object) -> ModelConfig:
    if not isinstance(values, dict):
        raise ValueError(f"model is {quote(values)}, allowed is an object")  # noqa: TRY004 - one fault for all
    return ModelConfig.from_json(cast("dict[str, object]", values), file="model")


def _read_stage(values: object) -> Stage:
    numbers = cast("list[object]", values) if isinstance(values, list) else [values]
    match numbers:
        case [int(tokens), int(history)]:
            return Stage(tokens, history)
        case _:
            raise ValueError(f"a stage is {quote(numbers)}, allowed are its tokens and its history")


def _check_values(manifest: Manifest) -> None:
    """Check what no type says: ranges, and names that stay in the folder.

    Raises: ValueError.
    """
    for name in (manifest.bmodel, *manifest.files):
        check_plain_name(name)
    limits = {
        "context": (manifest.context, manifest.model.max_context),
        "rows": (manifest.rows, _MOST_ROWS),
        "layers_per_net": (manifest.layers_per_net, _MOST_LAYERS),
        "devices": (manifest.devices, _MOST_DEVICES),
        **{f"rows of the head {rows}": (rows, _MOST_ROWS) for rows in manifest.head_rows},
        **{f"a number of stage {tuple(stage)}": (n, _MOST_ROWS) for stage in manifest.stages for n in stage},
    }
    for name, (value, most) in limits.items():
        if not 1 <= value <= most:
            raise ValueError(f"{name} is {value}, allowed are 1 to {most}")
