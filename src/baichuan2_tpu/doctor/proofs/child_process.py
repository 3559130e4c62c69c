"""Compute on a device in a child process: a crash of a vendor's library ends only that.

The child writes its answer to a file, because C libraries print to standard output. Not here: what is
computed (``prove_net``, ``engine.device.bmrt_echo``), what the answer means (``prove_engines``).
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.doctor.proofs.prove_net import check_layer, check_twice
from baichuan2_tpu.engine.device.bmrt_echo import ECHO_BYTES, echo_memory
from baichuan2_tpu.engine.registry import device_opener, open_engine
from baichuan2_tpu.errors import Baichuan2Error
from baichuan2_tpu.programs import own_command

__all__ = ["Outcome", "run_in_child", "work"]

_TIMEOUT_S = 300
"""Loading a 7B from a slow disk takes a minute; a device that hangs never returns."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was computed, or what went wrong; one of the two is empty."""

    result: str = ""
    problem: str = ""


def run_in_child(*words: str) -> Outcome:
    """Call ``work`` in a child process; a child that dies or hangs is a problem like any other."""
    with tempfile.TemporaryDirectory(prefix="baichuan2-doctor-") as name:
        answer = Path(name) / "answer.json"
        command = own_command(work, answer, *words)
        try:
            run = subprocess.run(  # noqa: S603 - a list, no shell
                command, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:  # run() has killed the child
            return Outcome(problem=f"did not finish within {_TIMEOUT_S} s")
        if run.returncode == 0 and answer.exists():
            return Outcome(**json.loads(answer.read_text("utf-8")))
    lines = (run.stderr or run.stdout).strip().splitlines() or ["(nothing)"]
    return Outcome(problem=f"the child process ended with code {run.returncode}; its last line: {lines[-1]}")


def work(answer: str, kind: str, *words: str) -> None:
    """Do one piece of work and write its outcome to ``answer``.

    Words of ``kind`` "memory": the number of a device and, to use it instead, the folder of a simulator.
    Words of "net": an engine, a compiled model, the number of a device and, if there is one, a checkpoint.
    """
    try:
        outcome = Outcome(_check_memory(*words) if kind == "memory" else _check_net(*words))
    except Baichuan2Error as error:
        outcome = Outcome(problem=str(error))
    Path(answer).write_text(json.dumps(asdict(outcome)), "utf-8")


def _check_memory(device: str, simulator: str = "") -> str:
    memory = echo_memory(int(device), simulator=Path(simulator) if simulator else None)
    result = f"{ECHO_BYTES >> 20} MiB sent, copied on the device and read back unchanged"
    if memory is None:
        return result
    return f"{result}; {(memory.total - memory.free) >> 20} of {memory.total >> 20} MiB in use"


def _check_net(engine: str, folder: str, device: str, checkpoint: str = "") -> str:
    if checkpoint:
        return check_layer(Path(folder), Path(checkpoint), device_opener(engine, int(device)))
    with open_engine(identify(Path(folder)), engine=engine, device=int(device)) as opened:
        return check_twice(opened)
