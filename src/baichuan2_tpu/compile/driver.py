"""Compile a checkpoint into a bundle, net by net, so that it can be stopped at any moment and continued.

Everything is written into ``OUT.partial``; ``OUT`` appears at once when it is complete. A net is finished
when all its stages are compiled, combined and checked; then its weights and the rest of it are kept as two
files and everything else of it is removed. The bytes of a bundle do not depend on jobs, interruptions or
places.
Not here: the nets (``nets``), calling the compiler (``tpuc``), joining the nets (``assemble``).
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from baichuan2_tpu import __version__
from baichuan2_tpu.bmodel.weights import copy_range, detach_weights, read_stages
from baichuan2_tpu.checkpoint.identify import WEIGHT_FILES
from baichuan2_tpu.compile.assemble import (
    BundleFacts,
    copy_assets,
    join_nets,
    open_source,
    write_embedding,
    write_manifest,
)
from baichuan2_tpu.compile.cycle_profile import PROFILE_NAME, read_cost
from baichuan2_tpu.compile.journal import FinishedUnit, Journal
from baichuan2_tpu.compile.net_weights import (
    Arrays,
    Source,
    block_weights,
    embedding_weights,
    head_weights,
)
from baichuan2_tpu.compile.nets import Net
from baichuan2_tpu.compile.plan import Plan, Unit, make_plan
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.compile.tpuc import Compiler
from baichuan2_tpu.errors import CompileError, RequestError
from baichuan2_tpu.files import digest_file, disk_errors, locked_folder, move_whole
from baichuan2_tpu.manifest import NetCost, Stage
from baichuan2_tpu.toolchain import Toolchain

__all__ = ["BuildSettings", "CompileEvent", "Progress", "compile_bundle"]

_KEPT = ("units", "bundle")
_SOURCE_FILES = ("*.json", *WEIGHT_FILES)
_WEIGHTS = "weights.npz"  # where nets.WEIGHT_FILE points to
_SIGNATURE = re.compile(r"tensor<((?:\d+x)+)")

_log = logging.getLogger(__name__)

Notice = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class CompileEvent:
    """How far it is. Units: ``done`` and ``total`` count stages, the others the bytes of their weights."""

    done: int
    total: int
    done_bytes: int
    total_bytes: int


Progress = Callable[[CompileEvent], None]


@dataclass(frozen=True, slots=True)
class BuildSettings:
    """How to build, which leaves no trace in the bundle."""

    toolchain: Toolchain
    jobs: int = 2
    keeps_work: bool = False
    """True to leave logs, skeletons and weights in ``OUT.partial``."""


def compile_bundle(
    checkpoint: str | Path,
    destination: str | Path,
    settings: CompileSettings,
    build: BuildSettings,
    *,
    progress: Progress | None = None,
    notice: Notice = _log.info,
) -> None:
    """Make the bundle ``destination`` out of a checkpoint.

    Side effect: what is finished stays in ``OUT.partial`` when it is interrupted; the same call continues.
    Raises: RequestError for a setting, an existing destination, too little disk space; CheckpointError;
    CompileError with the command, its exit code and the end of its log.
    """
    if build.jobs < 1:
        raise RequestError(f"jobs is {build.jobs}, allowed is 1 or more")
    checkpoint, destination = Path(checkpoint), Path(destination)
    if destination.exists() or destination.is_symlink():  # a link to nothing does not exist
        raise RequestError(f"{destination} exists already; remove it or name another directory")
    source = open_source(checkpoint)
    settings.check(source.config)
    plan = make_plan(source.config, settings, build.jobs)
    folder = destination.with_name(f"{destination.name}.partial")
    with locked_folder(folder), disk_errors(folder, CompileError):
        journal = Journal.open(folder, _task(checkpoint, settings, build.toolchain))
        if journal.is_begun_anew:
            notice(f"{folder} holds a build of other settings or another checkpoint; starting over")
        _prepare(folder, journal)
        _check_space(folder, plan, journal)
        compiler = Compiler(build.toolchain, folder / "logs")
        work = _Build(source, settings, plan, journal, compiler, progress or _ignore)
        work.run(build.jobs, notice)
        work.finish(checkpoint, keeps_work=build.keeps_work)
        if not build.keeps_work:
            shutil.rmtree(folder / "units")
        move_whole(journal.bmodel.parent, destination)
        if not build.keeps_work:
            shutil.rmtree(folder)


@dataclass(slots=True)
class _Build:
    """One run of a build."""

    source: Source
    settings: CompileSettings
    plan: Plan
    journal: Journal
    compiler: Compiler
    report: Progress
    compiled: list[Unit] = field(default_factory=list[Unit])
    """The unit of every stage that is done."""

    def run(self, jobs: int, notice: Notice) -> None:
        """Compile every net that is not finished; the first failure stops the others."""
        waiting = [unit for unit in self.plan.units if unit.name not in self.journal.units]
        if self.journal.units:
            self.compiled += [unit for unit in self.plan.units if unit not in waiting for _ in unit.stages]
            notice(f"continuing: {len(self.journal.units)} of {len(self.plan.units)} nets are finished")
        self._report()
        pool = ThreadPoolExecutor(jobs)
        try:
            tasks = {pool.submit(self._compile, unit): unit for unit in waiting}
            for task in as_completed(tasks):
                self.journal.add(tasks[task].name, task.result())
        except BaseException:
            self.compiler.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def finish(self, checkpoint: Path, *, keeps_work: bool) -> None:
        """Put the bundle together in the work folder."""
        self.journal.units = {name: self.journal.units[name] for name in self.plan.names}
        summary = join_nets(self.compiler, self.journal, keeps_work=keeps_work)
        folder = self.journal.bmodel.parent
        if self.settings.embedding == "disk":
            write_embedding(self.source, self.settings.dtype, folder)
        copy_assets(checkpoint, folder)
        facts = BundleFacts(self.source, checkpoint, self.compiler.toolchain.version)
        write_manifest(self.journal, self.settings, facts, summary)

    def _compile(self, unit: Unit) -> FinishedUnit:
        """Compile all stages of one net; what is kept of it is complete or absent."""
        folder = self.journal.folder / "scratch" / unit.name
        folder.mkdir(parents=True)
        np.savez(folder / _WEIGHTS, **self._arrays(unit))  # pyright: ignore[reportArgumentType] - any name
        stages = [self._compile_stage(unit, stage, folder) for stage in unit.stages]
        combined = folder / f"{unit.name}.bmodel"
        self.compiler.combine([skeleton for skeleton, _ in stages], combined)
        self._check(unit, combined)
        skeleton, weights = self.journal.skeleton(unit.name), self.journal.weights(unit.name)
        move_whole(combined, skeleton)
        move_whole(folder / weights.name, weights)
        shutil.rmtree(folder)
        code = read_stages(skeleton)[0].weights.code
        costs = tuple(cost for _, cost in stages)
        return FinishedUnit(digest_file(skeleton), digest_file(weights), code, costs)

    def _compile_stage(self, unit: Unit, stage: Stage, folder: Path) -> tuple[Path, NetCost]:
        """Compile one stage and take its weights out; those of the first are kept for all."""
        net = unit.net(self.source.config, self.settings, stage)
        stage_folder = folder / f"{stage.tokens}-{stage.history}"
        stage_folder.mkdir()
        is_first = stage == unit.stages[0]
        addresses = ("save" if is_first else "use") if net.has_own_io else None
        bmodel = self.compiler.compile(net, stage_folder, addresses)
        cost = read_cost(stage_folder / PROFILE_NAME, net=net.name, stage=stage)
        if is_first:
            _copy_weights(bmodel, folder / f"{unit.name}.weights")
        skeleton = stage_folder / "skeleton.bmodel"
        detach_weights(bmodel, skeleton)
        bmodel.unlink()
        self.compiled.append(unit)
        self._report()
        return skeleton, cost

    def _arrays(self, unit: Unit) -> Arrays:
        if unit.kind == "head":
            return head_weights(self.source, self.settings)
        if unit.kind == "embedding":
            return embedding_weights(self.source, self.settings)
        return block_weights(self.source, self.settings, unit.number)

    def _check(self, unit: Unit, combined: Path) -> None:
        """Check that a net has the shapes it should, one set of weights, and inputs at the same addresses.

        Raises: CompileError.
        """
        nets = [unit.net(self.source.config, self.settings, stage) for stage in unit.stages]
        expected = [(unit.name, _shapes(net)) for net in nets]
        stages = [(stage.net, stage.shapes) for stage in self.compiler.summarize(combined).stages]
        if stages != expected:
            raise CompileError(f"{combined}: has the stages {stages}, expected are {expected}")
        layouts = read_stages(combined)
        if len({layout.weights.code for layout in layouts}) > 1:
            raise CompileError(f"{combined}: its stages have different weights; compile with TPU-MLIR 1.30.2")
        if unit.kind == "block" and len({layout.inputs for layout in layouts}) > 1:
            raise CompileError(f"{combined}: its stages have different histories; use TPU-MLIR 1.30.2")

    def _report(self) -> None:
        done = list(self.compiled)  # another thread may append to it
        total = sum(len(unit.stages) * unit.weight_bytes for unit in self.plan.units)
        done_bytes = sum(unit.weight_bytes for unit in done)
        self.report(CompileEvent(len(done), self.plan.stages, done_bytes, total))


def _ignore(event: CompileEvent) -> None:
    """Draw nothing."""


def _task(checkpoint: Path, settings: CompileSettings, toolchain: Toolchain) -> dict[str, object]:
    """Describe everything the bytes of a bundle depend on; weights by size and time of change."""
    files = sorted({file for kind in _SOURCE_FILES for file in checkpoint.glob(kind)})
    states = [(file.name, file.stat()) for file in files]
    return {
        "versions": [__version__, toolchain.version],
        "settings": asdict(settings),
        "checkpoint": checkpoint.resolve().name,
        "files": [(name, state.st_size, state.st_mtime_ns) for name, state in states],
    }


def _prepare(folder: Path, journal: Journal) -> None:
    """Remove what an interrupted run or another task left behind, and make the folders."""
    for path in folder.iterdir():
        if path.is_dir() and (path.name not in _KEPT or not journal.units):
            shutil.rmtree(path)
    for name in ("logs", "units", "scratch"):
        (folder / name).mkdir(exist_ok=True)
    kept = {path for name in journal.units for path in (journal.skeleton(name), journal.weights(name))}
    for path in set((folder / "units").iterdir()) - kept:
        path.unlink()
    journal.write()


def _check_space(folder: Path, plan: Plan, journal: Journal) -> None:
    """Check that what is still to be written fits the disk."""
    done = sum(unit.weight_bytes for unit in plan.units if unit.name in journal.units)
    needed, free = plan.peak_disk_bytes - done, shutil.disk_usage(folder).free
    if needed > free:
        raise RequestError(
            f"{folder} needs {needed / 1e9:.2f} GB more, the disk has {free / 1e9:.2f} GB free; "
            "free some space or name a directory on another disk"
        )


def _copy_weights(bmodel: Path, weights: Path) -> None:
    region = read_stages(bmodel)[0].weights
    with bmodel.open("rb") as source, weights.open("wb") as target:
        copy_range(source, region.start, target, 0, region.nbytes)


def _shapes(net: Net) -> tuple[tuple[int, ...], ...]:
    """Read the shapes of inputs and outputs out of the text of a net."""
    signature = next(line for line in net.text.splitlines() if "func.func @main" in line)
    return tuple(tuple(map(int, shape.split("x")[:-1])) for shape in _SIGNATURE.findall(signature))
