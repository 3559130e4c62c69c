"""Calls of the compiler's programs, played by scripts: logs, failures, and that none is left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from baichuan2_tpu.compile.nets import Net
from baichuan2_tpu.compile.tpuc import Compiler, StageSummary
from baichuan2_tpu.errors import CompileError
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.toolchain import Toolchain

NET = Net("block_cache_0", Stage(16, 64), "module", "W4F16", 128, has_own_io=True)
INFO = """
bmodel version: B.2.2+v1.30.2
chip: BM1684X
==========================================
net 0: [block_cache_0]  static
addr mode: 1
------------
stage 0, core num: 1
input: input_states, [1, 16, 128], float16, scale: 1, zero_point: 0
output: output_states, [1, 16, 128], float16, scale: 1, zero_point: 0
------------
stage 1, core num: 1
input: input_states, [1, 1, 128], float16, scale: 1, zero_point: 0
==========================================
net 1: [lm_head]  static
------------
stage 0, core num: 1
input: states, [1, 128], float16, scale: 1, zero_point: 0

device mem size: 1123072 (weight: 741376, instruct: 78592, runtime: 303104)
"""


class Programs:
    """A toolchain whose programs are shell scripts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir(parents=True)
        (root / "logs").mkdir()
        (root / "work").mkdir()
        self.compiler = Compiler(Toolchain(root, "1.30.2"), root / "logs")

    def write(self, name: str, script: str) -> None:
        program = self.root / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path / "tool chain")


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(process: int) -> None:
    while is_running(process):
        time.sleep(0.001)


def test_a_stage_is_compiled_where_it_is_told(programs: Programs) -> None:
    programs.write("tpuc-opt", 'printf "%s\\n" "$@"; cat "$1"; echo made > block_cache_0.bmodel')
    bmodel = programs.compiler.compile(NET, programs.root / "work", "save")
    assert bmodel == programs.root / "work" / "block_cache_0.bmodel"
    log = (programs.root / "logs" / "block_cache_0-16-64.log").read_text()
    assert log.startswith("block_cache_0.mlir\n--init=level=0\n")
    assert log.endswith("module")
    assert "mode=W4F16" in log
    assert "addr_mode=io_alone" in log
    assert "\n--address-assign=save_io_alone_config=../addresses.json\n" in log


def test_a_program_sees_the_environment_of_the_toolchain_alone(
    programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD_OF_THE_USER", "yes")
    programs.write("tpuc-opt", "env; echo made > block_cache_0.bmodel")
    programs.compiler.compile(NET, programs.root / "work")
    lines = (programs.root / "logs" / "block_cache_0-16-64.log").read_text().splitlines()
    assert "OMP_NUM_THREADS=1" in lines
    assert not any("OF_THE_USER" in line for line in lines)


def test_a_failure_tells_command_code_and_the_end_of_the_log(programs: Programs) -> None:
    programs.write("tpuc-opt", "seq 30; echo; echo 'bad op' >&2; echo 'Stack dump:'; echo '#0 main'; exit 3")
    with pytest.raises(CompileError) as failed:
        programs.compiler.compile(NET, programs.root / "work")
    first, command, where, *lines = str(failed.value).splitlines()
    assert first == "tpuc-opt ended with exit code 3"
    assert command.startswith(f"command: '{programs.root / 'bin' / 'tpuc-opt'}' block_cache_0.mlir ")
    assert where == f"last lines of {programs.root / 'logs' / 'block_cache_0-16-64.log'}:"
    assert lines == [*(f"  {number}" for number in range(20, 31)), "  bad op"]


def test_a_signal_is_named(programs: Programs) -> None:
    programs.write("tpuc-opt", "kill -SEGV $$")
    with pytest.raises(CompileError, match=r"^tpuc-opt ended with signal SIGSEGV\n(.*\n)*  \(nothing\)$"):
        programs.compiler.compile(NET, programs.root / "work")


def test_success_without_a_bmodel_is_a_failure(programs: Programs) -> None:
    programs.write("tpuc-opt", "echo fine")
    programs.write("model_tool", "echo fine")
    with pytest.raises(CompileError, match="ended with exit code 0 and wrote no bmodel\n"):
        programs.compiler.compile(NET, programs.root / "work")
    with pytest.raises(CompileError, match="model_tool ended with exit code 0 and wrote no bmodel\n"):
        programs.compiler.combine([programs.root / "a.bmodel"], programs.root / "work" / "b.bmodel")
    with pytest.raises(CompileError, match=r"did not describe the bmodel\n(.*\n)*  fine$"):
        programs.compiler.summarize(programs.root / "work" / "b.bmodel")


def test_a_summary_lists_the_stages_of_every_net(programs: Programs) -> None:
    programs.write("model_tool", f"cat <<'END'\n{INFO}\nEND")
    found = programs.compiler.summarize(programs.root / "work" / "b.bmodel")
    assert (found.chip, found.device_bytes) == ("BM1684X", 1123072)
    assert found.stages == (
        StageSummary("block_cache_0", ((1, 16, 128), (1, 16, 128))),
        StageSummary("block_cache_0", ((1, 1, 128),)),
        StageSummary("lm_head", ((1, 128),)),
    )


def started(programs: Programs) -> tuple[int, int]:
    """Wait for a program and what it started, which write their numbers; return those."""
    file = programs.root / "work" / "numbers"
    while not file.exists() or len(file.read_text().split()) < 2:
        time.sleep(0.001)
    first, second = map(int, file.read_text().split())
    return first, second


ENDLESS = "sleep 600 & echo $$ $! > numbers; wait"


def test_stop_kills_what_runs_and_what_that_started(programs: Programs) -> None:
    programs.write("tpuc-opt", ENDLESS)
    failures: list[CompileError] = []

    def compile_in_thread() -> None:
        try:
            programs.compiler.compile(NET, programs.root / "work")
        except CompileError as error:
            failures.append(error)

    thread = threading.Thread(target=compile_in_thread)
    thread.start()
    numbers = started(programs)
    programs.compiler.stop()
    thread.join()
    for number in numbers:
        wait_until_gone(number)
    assert "ended with signal SIGKILL" in str(failures[0])
    with pytest.raises(CompileError, match="tpuc-opt was not started: the build has stopped"):
        programs.compiler.compile(NET, programs.root / "work")


BUILD = """
import sys
from pathlib import Path
from baichuan2_tpu.compile.nets import Net
from baichuan2_tpu.compile.tpuc import Compiler
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.toolchain import Toolchain
root = Path(sys.argv[1])
net = Net("block_cache_0", Stage(16, 64), "module", "W4F16", 128, has_own_io=True)
Compiler(Toolchain(root, "1.30.2"), root / "logs").compile(net, root / "work")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_no_compiler_outlives_the_process_that_called_it(programs: Programs, number: signal.Signals) -> None:
    programs.write("tpuc-opt", ENDLESS)
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, str(programs.root)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    compiler, below = started(programs)
    os.kill(process.pid, number)
    process.wait()
    wait_until_gone(compiler)
    if is_running(below):  # a compiler that is killed with its parent cannot take along what it started
        os.kill(below, signal.SIGKILL)
    assert process.returncode != 0
