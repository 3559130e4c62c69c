"""Quantise a checkpoint file by file, on several threads, so that it can be stopped and continued.

Everything is written into ``DST.partial``, which is renamed to ``DST`` when it is complete. The native search
and numpy release the GIL, so threads are enough. The bytes written do not depend on their number.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.foreign.settings import SETTINGS_FILES
from baichuan2_tpu.checkpoint.foreign.stored_form import StoredForm
from baichuan2_tpu.config import Method, QuantizationConfig, default_method
from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.files import LOCK_NAME, disk_errors, locked_folder, move_whole
from baichuan2_tpu.quantize.assets import check_assets, write_assets
from baichuan2_tpu.quantize.calibrated_run import CalibratedRun, scratch_bytes
from baichuan2_tpu.quantize.calibration_text import Calibration, Windows, open_windows, write_windows
from baichuan2_tpu.quantize.journal import Journal
from baichuan2_tpu.quantize.plan import Plan, Shard, make_plan
from baichuan2_tpu.quantize.repack import choose_settings, describe_repacking, keeps_integers
from baichuan2_tpu.quantize.shard_file import write_shard

__all__ = ["Progress", "QuantizeEvent", "check_destination", "quantize"]

_SPARE_BYTES = 64 << 20  # headers, tokenizer, journal
_JOURNAL = "journal.json"
_CALIBRATED_HEAD_BITS = 4  # at 8 bits the head loses next to nothing, and is the largest matrix by far

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class QuantizeEvent:
    """How far it is. Units: ``done`` and ``total`` count files, the others the bytes of their tensors."""

    done: int
    total: int
    done_bytes: int
    total_bytes: int


Progress = Callable[[QuantizeEvent], None]
Notice = Callable[[str], None]


def quantize(  # noqa: PLR0913 - all but two are optional and go by name
    source: str | Path,
    destination: str | Path,
    *,
    bits: int | None = None,
    group_size: int | None = None,
    head_bits: int | None = None,
    method: Method | None = None,
    calibration: Calibration | None = None,
    adapters: Sequence[str | Path] = (),
    workers: int = 2,
    progress: Progress | None = None,
    notice: Notice = _log.info,
) -> None:
    """Make the quantised checkpoint ``destination`` out of the float checkpoint or GGUF file ``source``.

    The defaults are 4 bits in groups of 64 with a head of 8 bits; for a ``source`` that another tool
    quantised, the settings that keep its integers.
    Integers are chosen by ``method``; None is ``scale`` for 4 bits, and ``search`` for 8 or where
    integers of another tool are kept. ``calibration`` names the text for the methods that use one.
    ``adapters`` are folders of LoRA adapters, which are merged into the float weights in that order.
    Side effect: what is finished stays in ``DST.partial`` when it is interrupted; the same call continues.
    Nothing stays where the source is wrong.
    Raises: RequestError for a setting, an existing destination, too little disk space; CheckpointError.
    """
    _check_workers(workers)
    source, destination = Path(source), Path(destination)
    check_destination(destination)
    checkpoint = FloatCheckpoint.open(source, [Path(adapter) for adapter in adapters])
    check_assets(checkpoint)
    if method is None:
        stored = None if calibration else checkpoint.stored
        method = _choose_method(stored, choose_settings(stored, bits, group_size, head_bits, "search"))
    windows = _open_windows(checkpoint, calibration, method)
    settings = choose_settings(checkpoint.stored, bits, group_size, head_bits, method)
    for line in filter(None, (*checkpoint.notices, describe_repacking(checkpoint, settings))):
        notice(line)
    plan = make_plan(checkpoint.config, settings)
    partial = destination.with_name(f"{destination.name}.partial")
    with locked_folder(partial), disk_errors(partial, RequestError):
        settings_files = [checkpoint.path / name for name in SETTINGS_FILES]
        sources = (*filter(Path.is_file, settings_files), *checkpoint.files)
        merged = [adapter.record for adapter in checkpoint.adapters]
        journal = Journal.open(
            partial / _JOURNAL, settings, sources, windows and windows.describe(), adapters=merged
        )
        _remove_leftovers(partial, journal)
        _check_space(partial, plan, journal, windows)
        task = _Task(checkpoint, plan, journal, progress or _ignore)
        try:
            with ThreadPoolExecutor(workers) as pool:
                _write_all(task, windows, pool, notice)
        except CheckpointError:
            shutil.rmtree(partial)  # the source itself is wrong: there is nothing to continue
            raise
        write_assets(checkpoint, partial, plan)
        journal.path.unlink()
        move_whole(partial, destination)
        # Last: a directory without it is taken for somebody else's when this is interrupted.
        (destination / LOCK_NAME).unlink()


def _choose_method(stored: StoredForm | None, settings: QuantizationConfig) -> Method:
    """Return the default: what keeps another tool's integers where they can be, else that of the bits."""
    if stored is not None and keeps_integers(stored, settings):
        return "search"
    return default_method(settings.bits)


def _open_windows(
    checkpoint: FloatCheckpoint, calibration: Calibration | None, method: Method
) -> Windows | None:
    """Open the text of a calibrated method; the search has none, and a text for it is a mistake."""
    if method != "search":
        return open_windows(checkpoint, calibration or Calibration(), method)
    if calibration is not None:
        raise RequestError("the method search takes no text to calibrate with; use scale or gptq")
    return None


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise RequestError(f"workers is {workers}, allowed is 1 or more")


def check_destination(destination: Path) -> None:
    """Check that there is nothing where a checkpoint will be made.

    Raises: RequestError.
    """
    if destination.exists() or destination.is_symlink():  # a link to nothing does not exist
        raise RequestError(f"{destination} exists already; remove it or name another directory")


def _ignore(event: QuantizeEvent) -> None:
    """Draw nothing."""


def _remove_leftovers(directory: Path, journal: Journal) -> None:
    """Remove what another task or an interrupted write left behind."""
    for path in directory.iterdir():
        if path.name not in (*journal.done, journal.path.name, LOCK_NAME):
            path.unlink()


def _check_space(directory: Path, plan: Plan, journal: Journal, windows: Windows | None) -> None:
    """Check that what is still to be written fits the disk."""
    needed = plan.size_bytes - _done_bytes(plan, journal) + _SPARE_BYTES
    if windows is not None:
        needed += scratch_bytes(plan.config, windows, plan.quantization.method)
    free = shutil.disk_usage(directory).free
    if needed > free:
        raise RequestError(
            f"{directory} needs {needed / 1e9:.2f} GB more, the disk has {free / 1e9:.2f} GB free; "
            "free some space or name a directory on another disk"
        )


@dataclass(frozen=True, slots=True)
class _Task:
    """What is made of what, how far it is, and who wants to know."""

    checkpoint: FloatCheckpoint
    plan: Plan
    journal: Journal
    progress: Progress

    def report(self) -> None:
        """Tell how far the journal is."""
        done = sum(shard.file in self.journal.done for shard in self.plan.shards)
        done_bytes = _done_bytes(self.plan, self.journal)
        self.progress(QuantizeEvent(done, len(self.plan.shards), done_bytes, self.plan.size_bytes))


def _write_all(task: _Task, windows: Windows | None, pool: Executor, notice: Notice) -> None:
    """Write every file that is not done yet; windows calibrate the layers, and for gptq a head of 4 bits."""
    task.report()
    plan = task.plan
    if windows is None:
        _write_shards(task, plan.shards, pool)
        return
    settings = plan.quantization
    is_head_calibrated = settings.method == "gptq" and settings.head_bits == _CALIBRATED_HEAD_BITS
    first, *_, last, head = plan.shards
    _write_shards(task, (first, last) if is_head_calibrated else (first, last, head), pool)

    def tokens() -> NDArray[np.int32]:
        if windows.given is not None:
            return windows.given
        return write_windows(task.checkpoint, plan, windows, notice)

    CalibratedRun(task.checkpoint, plan, task.journal, tokens, pool).write(task.report)


def _write_shards(task: _Task, shards: Sequence[Shard], pool: Executor) -> None:
    """Write those files that are not done yet, by range search; the first failure stops the rest."""
    directory = task.journal.path.parent
    # Last file first: the head takes longest, and would keep one thread busy alone at the end.
    waiting = [shard for shard in reversed(shards) if shard.file not in task.journal.done]
    writing = [pool.submit(write_shard, task.checkpoint, task.plan, shard, directory) for shard in waiting]
    try:
        for done in as_completed(writing):
            task.journal.add(done.result())
            task.report()
    finally:
        for future in writing:
            future.cancel()


def _done_bytes(plan: Plan, journal: Journal) -> int:
    """Return the bytes of the tensors in finished files."""
    return sum(shard.size_bytes for shard in plan.shards if shard.file in journal.done)
