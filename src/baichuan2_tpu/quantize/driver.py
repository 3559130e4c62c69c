"""Quantise a checkpoint file by file, on several threads, so that it can be stopped and gone on with.

Everything is written into ``DST.partial``, which is renamed to ``DST`` when it is whole. The native search
and numpy release the GIL, so threads are enough. The bytes written do not depend on their number.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file  # pyright: ignore[reportUnknownVariableType] - a bare PathLike in it

from baichuan2_tpu.checkpoint.floats import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import linear_bits
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.config import HEAD_BITS
from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.quantize.assets import check_assets, write_assets
from baichuan2_tpu.quantize.journal import Journal
from baichuan2_tpu.quantize.linear import convert_array, quantize_linear
from baichuan2_tpu.quantize.plan import EMBEDDING, Plan, Shard, make_plan, quantization_settings
from baichuan2_tpu.work_folder import LOCK_NAME, locked_folder

__all__ = ["Progress", "QuantizeEvent", "quantize"]

_SPARE_BYTES = 64 << 20  # headers, tokenizer, journal
_JOURNAL = "journal.json"
_FILE_MODE = 0o644  # the safetensors library makes files that only their owner can read


@dataclass(frozen=True, slots=True)
class QuantizeEvent:
    """How far it is. Units: ``done`` and ``total`` count files, the others the bytes of their tensors."""

    done: int
    total: int
    done_bytes: int
    total_bytes: int


Progress = Callable[[QuantizeEvent], None]


def quantize(  # noqa: PLR0913 - all but two are optional and go by name
    source: Path,
    destination: Path,
    *,
    bits: int,
    group_size: int = 64,
    head_bits: int = HEAD_BITS,
    workers: int = 2,
    progress: Progress | None = None,
) -> None:
    """Make the quantised checkpoint ``destination`` out of the float checkpoint or GGUF file ``source``.

    Side effect: what is finished stays in ``DST.partial`` when it is interrupted; the same call goes on.
    Nothing stays where the source is wrong.
    Raises: RequestError for a setting, an existing destination, too little disk space; CheckpointError.
    """
    if workers < 1:
        raise RequestError(f"workers is {workers}, allowed is 1 or more")
    if destination.exists() or destination.is_symlink():  # a link to nothing does not exist
        raise RequestError(f"{destination} exists already; remove it or name another directory")
    checkpoint = FloatCheckpoint.open(source)
    check_assets(checkpoint)
    plan = make_plan(checkpoint.config, quantization_settings(bits, group_size, head_bits))
    partial = destination.with_name(f"{destination.name}.partial")
    with locked_folder(partial):
        sources = checkpoint.files if source.is_file() else (source / "config.json", *checkpoint.files)
        journal = Journal.open(partial / _JOURNAL, plan.quantization, sources)
        _remove_leftovers(partial, journal)
        _check_space(partial, plan, journal)
        try:
            _write_shards(checkpoint, plan, journal, workers, progress or _ignore)
        except CheckpointError:
            shutil.rmtree(partial)  # the source itself is wrong: there is nothing to go on with
            raise
        write_assets(checkpoint, partial, plan)
        journal.path.unlink()
        partial.replace(destination)
        # Last: a directory without it is taken for somebody else's when this is interrupted.
        (destination / LOCK_NAME).unlink()


def _ignore(event: QuantizeEvent) -> None:
    """Draw nothing."""


def _remove_leftovers(directory: Path, journal: Journal) -> None:
    """Remove what another task or an interrupted write left behind."""
    for path in directory.iterdir():
        if path.name not in (*journal.done, journal.path.name, LOCK_NAME):
            path.unlink()


def _check_space(directory: Path, plan: Plan, journal: Journal) -> None:
    """Check that what is still to be written fits the disk."""
    needed = plan.size_bytes - _done_bytes(plan, journal) + _SPARE_BYTES
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise RequestError(
            f"{directory} needs {needed / 1e9:.2f} GB more, the disk has {free / 1e9:.2f} GB free; "
            "free some space or name a directory on another disk"
        )


def _write_shards(
    checkpoint: FloatCheckpoint, plan: Plan, journal: Journal, workers: int, report: Progress
) -> None:
    """Write every file that is not done yet; the first failure stops the rest."""
    directory = journal.path.parent
    report(_event(plan, journal))
    # Last file first: the head takes longest, and would keep one thread busy alone at the end.
    waiting = [shard for shard in reversed(plan.shards) if shard.file not in journal.done]
    pool = ThreadPoolExecutor(workers)
    try:
        tasks = [pool.submit(_write_shard, checkpoint, plan, shard, directory) for shard in waiting]
        for task in as_completed(tasks):
            journal.add(task.result())
            report(_event(plan, journal))
    finally:
        pool.shutdown(cancel_futures=True)


def _event(plan: Plan, journal: Journal) -> QuantizeEvent:
    """Describe how far the journal is."""
    return QuantizeEvent(len(journal.done), len(plan.shards), _done_bytes(plan, journal), plan.size_bytes)


def _done_bytes(plan: Plan, journal: Journal) -> int:
    """Return the bytes of the tensors in finished files."""
    return sum(shard.size_bytes for shard in plan.shards if shard.file in journal.done)


def _write_shard(checkpoint: FloatCheckpoint, plan: Plan, shard: Shard, directory: Path) -> Path:
    """Quantise and write one file; it is there whole or not at all."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, shape in shard.arrays.items():
        dtype = np.float16 if name == EMBEDDING else np.float32
        tensors[f"{name}.weight"] = convert_array(checkpoint, name, shape, dtype)
    for name, size in shard.linears.items():
        bits = linear_bits(plan.config, name)
        linear = quantize_linear(checkpoint, name, size, bits=bits, group_size=plan.quantization.group_size)
        tensors |= _named(name, linear, size[1])
    path = directory / shard.file
    beside = path.with_name(f"{path.name}.tmp")
    save_file(tensors, beside, metadata={"format": "pt"})
    beside.chmod(_FILE_MODE)
    beside.replace(path)
    return path


def _named(name: str, linear: PackedLinear, inputs: int) -> dict[str, NDArray[Any]]:
    """Return the tensors of a packed linear; GPTQ readers want the group of every column spelled out."""
    return {
        f"{name}.qweight": linear.qweight,
        f"{name}.qzeros": linear.qzeros,
        f"{name}.scales": linear.scales,
        f"{name}.g_idx": (np.arange(inputs) // linear.group_size).astype(np.int32),
    }
