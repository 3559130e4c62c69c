"""Put a bundle together: the bmodel out of its nets, the embedding's file, the tokenizer, the manifest.

Not here: compiling the nets (``driver``), reading a bundle (``manifest``).
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from baichuan2_tpu import __version__
from baichuan2_tpu.bmodel.weights import align, copy_range, fill_skeleton, read_stages
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.layout import EMBEDDING
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.compile.float_rows import Source, float_rows
from baichuan2_tpu.compile.journal import Journal
from baichuan2_tpu.compile.settings import CompileSettings, compiled_group_size
from baichuan2_tpu.compile.tpuc import Compiler, ModelSummary
from baichuan2_tpu.errors import CompileError, RequestError
from baichuan2_tpu.files import digest_file, hash_blocks
from baichuan2_tpu.manifest import MANIFEST_NAME, Float, Manifest

__all__ = ["BundleFacts", "copy_assets", "join_nets", "open_source", "write_embedding", "write_manifest"]

_EMBEDDING_NAME = "embedding.bin"
_ASSETS = (
    "config.json",
    "generation_config.json",
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_IDENTIFYING = ("config.json", "model.safetensors.index.json", "pytorch_model.bin.index.json")


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """What a manifest says beside the settings."""

    source: Source
    checkpoint: Path
    toolchain_version: str


def open_source(path: Path) -> QuantizedCheckpoint | FloatCheckpoint:
    """Open the checkpoint to compile.

    Raises: RequestError for what must be quantised first or is compiled already; CheckpointError.
    """
    kind = identify(path).kind
    if kind == "gguf":
        raise RequestError(f"{path}: is a GGUF file; first run baichuan2 quantize SRC DST, then compile DST")
    if kind == "foreign":
        raise RequestError(
            f"{path}: was quantised by another tool; first run baichuan2 quantize SRC DST, then compile DST"
        )
    if kind in ("bundle", "bmodel"):
        raise RequestError(f"{path}: is compiled already; name the checkpoint it was compiled from")
    return QuantizedCheckpoint(path) if kind == "quantized" else FloatCheckpoint.open(path)


def join_nets(compiler: Compiler, journal: Journal, *, keeps_work: bool) -> ModelSummary:
    """Make the bmodel of a bundle out of all finished units and describe it.

    The weights move in one unit at a time, so that the disk never holds them twice. An interrupted call can
    be repeated.
    Raises: CompileError, also when the result is not what its parts were.
    """
    skeletons = [journal.skeleton(name) for name in journal.units]
    skeleton = journal.folder / "skeleton.bmodel"
    compiler.combine(skeletons, skeleton)
    starts: dict[str, int] = {}
    end = align(skeleton.stat().st_size)
    for name, unit in journal.units.items():
        starts[name] = end
        end = align(end + unit.weights.nbytes)
    places = {unit.code: (starts[name], unit.weights.nbytes) for name, unit in journal.units.items()}
    journal.bmodel.parent.mkdir(exist_ok=True)
    fill_skeleton(skeleton, journal.bmodel, places, end)
    for name, start in starts.items():
        _move_weights(journal, name, start, keeps_work=keeps_work)
    return _verify(compiler, journal)


def write_embedding(source: Source, dtype: Float, folder: Path) -> None:
    """Write the embedding as raw numbers of ``dtype``. Shapes: (V, E)."""
    shape = (source.config.vocabulary_size, source.config.hidden_size)
    with (folder / _EMBEDDING_NAME).open("wb") as file:
        for rows in float_rows(source, EMBEDDING, shape, dtype):
            file.write(rows.tobytes())


def copy_assets(checkpoint: Path, folder: Path) -> None:
    """Copy what a tokenizer and a conversation need."""
    for name in _ASSETS:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)


def write_manifest(
    journal: Journal, settings: CompileSettings, facts: BundleFacts, summary: ModelSummary
) -> None:
    """Write the manifest, last: everything else of the bundle is hashed."""
    folder = journal.bmodel.parent
    own_io = _own_io_bytes(journal.bmodel)
    names = sorted(path.name for path in folder.iterdir() if path.name != MANIFEST_NAME)
    Manifest(
        # The head in the bundle is written out and folded, whatever it was in the checkpoint.
        model=replace(facts.source.config, is_head_tied=False, is_head_normalized=False),
        bits=settings.bits,
        head=settings.head,
        head_output=settings.head_output,
        embedding=settings.embedding,
        dtype=settings.dtype,
        context=settings.context,
        rows=settings.rows,
        stages=settings.stages,
        head_rows=settings.head_rows,
        layers_per_net=settings.layers_per_net,
        group_size=compiled_group_size(facts.source.config),
        devices=settings.devices,
        chip=summary.chip.lower(),
        bmodel=journal.bmodel.name,
        device_bytes=summary.device_bytes + own_io,
        source=_describe(facts.checkpoint),
        tools={"baichuan2-tpu": __version__, "tpu_mlir": facts.toolchain_version},
        costs=tuple(cost for unit in journal.units.values() for cost in unit.costs),
        files={name: digest_file(folder / name) for name in names},
    ).write(folder)


def _move_weights(journal: Journal, name: str, start: int, *, keeps_work: bool) -> None:
    """Copy the weights of a unit to their place and remove their file."""
    weights, unit = journal.weights(name), journal.units[name]
    if not weights.is_file():
        return  # moved before an interruption, and verified since
    with weights.open("rb") as source, journal.bmodel.open("r+b") as target:
        digest = copy_range(source, 0, target, start, unit.weights.nbytes)
    if digest != unit.weights.sha256:
        raise CompileError(f"{weights}: changed after it was written; run the same command again")
    journal.add_moved(name, start)
    if not keeps_work:
        weights.unlink()


def _verify(compiler: Compiler, journal: Journal) -> ModelSummary:
    """Check that the joined bmodel has the stages of its parts, and return what it holds."""
    summary = compiler.summarize(journal.bmodel)
    parts = [compiler.summarize(journal.skeleton(name)).stages for name in journal.units]
    if sorted(summary.stages, key=repr) != sorted((stage for part in parts for stage in part), key=repr):
        raise CompileError(f"{journal.bmodel}: has other stages than its parts; remove {journal.folder}")
    return summary


def _own_io_bytes(bmodel: Path) -> int:
    """Add up the memory for inputs and outputs that nets do not share; the stages of one net do."""
    largest: dict[str, int] = {}
    for stage in read_stages(bmodel):
        largest[stage.net] = max(largest.get(stage.net, 0), stage.own_io_bytes)
    return sum(largest.values())


def _describe(checkpoint: Path) -> str:
    """Name a checkpoint, and hash the files that say what it is."""
    digests: Mapping[str, str] = {
        name: digest_file(checkpoint / name).sha256 for name in _IDENTIFYING if (checkpoint / name).is_file()
    }
    joint = hash_blocks(f"{name} {digest}\n".encode() for name, digest in digests.items())
    return f"{checkpoint.resolve().name} sha256:{joint}"
