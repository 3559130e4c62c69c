"""Call TPU-MLIR's programs: one tpuc-opt per stage of a net, model_tool to combine and to describe.

Every call has a log; a call that fails becomes a CompileError that says everything about it. Not here: what
is compiled (``nets``), in which order (``driver``), where the programs are (``toolchain``).
Source of the passes and their options: ``utils/mlir_shell.py`` of tpu_mlir 1.30.2.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from baichuan2_tpu.compile.nets import Net
from baichuan2_tpu.errors import CompileError
from baichuan2_tpu.files import is_full
from baichuan2_tpu.programs import kill_program, start_program
from baichuan2_tpu.toolchain import Toolchain

__all__ = ["Addresses", "Compiler", "ModelSummary", "StageSummary"]

Addresses = Literal["save", "use"]
"""Where inputs and outputs lie: one stage of a net saves its addresses, the others use them.

So all stages find the same history in the same place.
"""

_ADDRESS_FILE = "../addresses.json"  # beside the weights, seen from the folder a stage is compiled in

_LOG_LINES = 12
_LOG_LINE_CHARACTERS = 300
_OPENMP_THREADS = "1"  # several programs run at once; more threads in each gain nothing (measured)

_STACK_TRACE = re.compile(r"^(?:PLEASE submit a bug report|Stack dump:)", re.MULTILINE)
_STAGE = re.compile(r"^(?:input|output): (\S+), \[([\d, ]*)\], (\w+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class StageSummary:
    """Shapes of one stage of one net, inputs and outputs in order."""

    net: str
    shapes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """What ``model_tool --info`` says of a bmodel."""

    chip: str
    device_bytes: int
    stages: tuple[StageSummary, ...]


@dataclass(slots=True)
class Compiler:
    """TPU-MLIR's programs, which may be called from several threads; ``stop`` ends what still runs.

    Side effect: every call writes a log into ``logs``, which must exist.
    """

    toolchain: Toolchain
    logs: Path
    _running: set[subprocess.Popen[bytes]] = field(default_factory=set[subprocess.Popen[bytes]])
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _is_stopped: bool = False

    def compile(self, net: Net, folder: Path, addresses: Addresses | None = None) -> Path:
        """Compile one stage in ``folder`` and return its bmodel; its weights are where the text says.

        Raises: CompileError.
        """
        source = folder / f"{net.name}.mlir"
        source.write_text(net.text, "ascii")
        bmodel = source.with_suffix(".bmodel")
        command = [str(self.toolchain.tpuc_opt), source.name, *_passes(net, bmodel.name, addresses)]
        log = self._run(command, folder, f"{net.name}-{net.stage.tokens}-{net.stage.history}")
        if not bmodel.is_file():  # some faults of tpuc-opt end with exit code 0
            raise _failure(command, log, "ended with exit code 0 and wrote no bmodel")
        return bmodel

    def combine(self, parts: Sequence[Path], result: Path) -> None:
        """Make one bmodel of several; stages of one net become one, what is stored twice is stored once.

        Raises: CompileError.
        """
        # The program runs in the folder of the result, where relative paths would mean something else.
        paths = [str(path.absolute()) for path in (*parts, result)]
        command = [str(self.toolchain.model_tool), "--combine", *paths[:-1], "-o", paths[-1]]
        log = self._run(command, result.parent, f"combine-{result.stem}")
        if not result.is_file():
            raise _failure(command, log, "ended with exit code 0 and wrote no bmodel")

    def summarize(self, bmodel: Path) -> ModelSummary:
        """Read what a bmodel holds.

        Raises: CompileError, also where the program says less than it should.
        """
        command = [str(self.toolchain.model_tool), "--info", str(bmodel.absolute())]
        log = self._run(command, bmodel.parent, f"info-{bmodel.stem}")
        text = log.read_text("utf-8", errors="replace")
        chip = re.search(r"^chip: (\w+)", text, re.MULTILINE)
        memory = re.search(r"^device mem size: (\d+)", text, re.MULTILINE)
        if chip is None or memory is None:
            raise _failure(command, log, "ended with exit code 0 and did not describe the bmodel")
        return ModelSummary(chip[1], int(memory[1]), tuple(_stages(text)))

    def stop(self) -> None:
        """Kill every program that runs, with what it started, and start no other."""
        with self._lock:
            self._is_stopped = True
            for process in self._running:
                kill_program(process)

    def _run(self, command: Sequence[str], folder: Path, name: str) -> Path:
        """Run a program to its end and return its log."""
        log = self.logs / f"{name}.log"
        environment = self.toolchain.environment() | {"OMP_NUM_THREADS": _OPENMP_THREADS}
        with log.open("wb") as output:
            code = self._wait(self._start(command, folder, environment, output))
        if code != 0 and is_full(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if code != 0:
            raise _failure(command, log, f"ended with {_describe_exit(code)}")
        return log

    def _start(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str], output: IO[bytes]
    ) -> subprocess.Popen[bytes]:
        with self._lock:
            if self._is_stopped:
                raise CompileError(f"{Path(command[0]).name} was not started: the build has stopped")
            process = start_program(command, folder, output, environment=environment)
            self._running.add(process)
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        try:
            return process.wait()
        except BaseException:
            kill_program(process)
            process.wait()
            raise
        finally:
            with self._lock:
                self._running.discard(process)


def _passes(net: Net, bmodel: str, addresses: Addresses | None) -> list[str]:
    """Return the passes from the text of a net to a bmodel, in order."""
    address_mode = "io_alone" if net.has_own_io else "basic"
    assign = "--address-assign"
    if addresses is not None:
        assign += f"={addresses}_io_alone_config={_ADDRESS_FILE}"
    return [
        "--init=level=0",
        f"--processor-assign=chip=bm1684x mode={net.mode} num_device=1 num_core=1 "
        f"addr_mode={address_mode} high_precision=True",
        "--processor-top-optimize",
        f"--convert-top-to-tpu=asymmetric=False doWinograd=False q_group_size={net.group_size} "
        "q_symmetric=False matmul_perchannel=False gelu_mode=normal",
        "--canonicalize",
        "--weight-fold",
        "--mlir-disable-threading",
        "--strip-io-quant=quant_input=True quant_output=True quant_input_list= quant_output_list= "
        "quant_output_bf16=False quant_input_int8=False quant_output_int8=False",
        "--processor-tpu-optimize",
        "--dev-parallel",
        "--weight-reorder",
        "--subnet-divide=dynamic=False",
        "--op-reorder",
        "--topo-sort",
        "--layer-group=opt=2 group_by_cores=auto compress_mode=none debugger=0 "
        "disable_group_overlap=false lgcache=true config_filename= enable_lghash=false lghash_dir=",
        "--core-parallel",
        "--after-layergroup-weight-reorder",
        assign,
        f"--codegen=model_file={bmodel} embed_debug_info=False model_version=latest bmodel_only=False "
        "gdma_check=False rvti=False",
        "--deinit=no_save_weight=True",
        "-o",
        os.devnull,
    ]


def _stages(text: str) -> list[StageSummary]:
    """Read the stages out of the text of ``model_tool --info``."""
    summaries: list[StageSummary] = []
    for part in re.split(r"^net \d+: ", text, flags=re.MULTILINE)[1:]:
        name = part[1 : part.index("]")]
        for stage in re.split(r"^stage \d+, ", part, flags=re.MULTILINE)[1:]:
            shapes = tuple(tuple(map(int, shape.split(", "))) for _, shape, _ in _STAGE.findall(stage))
            summaries.append(StageSummary(name, shapes))
    return summaries


def _describe_exit(code: int) -> str:
    """Say how a program ended."""
    if code < 0:
        return f"signal {signal.Signals(-code).name}"
    return f"exit code {code}"


def _failure(command: Sequence[str], log: Path, complaint: str) -> CompileError:
    """Make the error of a call, with the end of its log."""
    text = log.read_text("utf-8", errors="replace")
    text = _STACK_TRACE.split(text, maxsplit=1)[0]
    lines = [line.rstrip()[:_LOG_LINE_CHARACTERS] for line in re.split(r"[\r\n]+", text) if line.strip()]
    tail = "\n".join(f"  {line}" for line in lines[-_LOG_LINES:]) or "  (nothing)"
    return CompileError(
        f"{Path(command[0]).name} {complaint}\ncommand: {shlex.join(command)}\nlast lines of {log}:\n{tail}"
    )
