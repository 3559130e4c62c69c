"""What computes on a device, in a process of its own: a fault of a vendor's library ends that one alone.

The child writes its answer to a file, for its standard output belongs to whatever C libraries print. Not
here: what is computed (``net_check``, ``engine.bmrt_memory``), what the answer means (``proof``).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.doctor.prove_net import check_layer, check_twice
from baichuan2_tpu.engine.device.bmrt_echo import ECHO_BYTES, echo_memory
from baichuan2_tpu.engine.registry import device_opener, open_engine
from baichuan2_tpu.errors import Baichuan2Error

__all__ = ["Outcome", "run_apart", "work"]

_TIMEOUT_S = 300
"""A 7B is loaded in a minute from a slow disk; a device that hangs hangs for ever."""
_WORK = (
    "import json, sys;"
    "sys.path[:] = json.loads(sys.argv[1]);"
    "from baichuan2_tpu.doctor.child_process import work;"
    "work(*sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was seen, or what went wrong; one of them is empty."""

    told: str = ""
    problem: str = ""


def run_apart(*words: str) -> Outcome:
    """Do what ``work`` does, in a child process; a child that dies or hangs is a problem like any other."""
    with tempfile.TemporaryDirectory(prefix="baichuan2-doctor-") as name:
        answer = Path(name) / "answer.json"
        # -c alone would import from the user's folder; ours and SAIL are found where we found them.
        paths = json.dumps([path for path in sys.path if path])
        command = [sys.executable, "-I", "-c", _WORK, paths, str(answer), *words]
        try:
            run = subprocess.run(  # noqa: S603 - a list, no shell
                command, capture_output=True, text=True, errors="replace", check=False, timeout=_TIMEOUT_S
            )
        except subprocess.TimeoutExpired:  # run() has killed the child
            return Outcome(problem=f"did not end within {_TIMEOUT_S} s")
        if run.returncode == 0 and answer.exists():
            return Outcome(**json.loads(answer.read_text("utf-8")))
    lines = (run.stderr or run.stdout).strip().splitlines() or ["(nothing)"]
    return Outcome(problem=f"ended with code {run.returncode}, its last line: {lines[-1]}")


def work(answer: str, kind: str, *words: str) -> None:
    """Do one piece of work and write its outcome to ``answer``.

    ``kind`` "memory" takes the number of a device, or else the folder of a simulator; "net" an engine, a
    folder, the number of a device and, if there is one, a checkpoint.
    """
    try:
        told = _echo(*words) if kind == "memory" else _check_net(*words)
        outcome = Outcome(told=told)
    except Baichuan2Error as error:
        outcome = Outcome(problem=str(error))
    Path(answer).write_text(json.dumps(asdict(outcome)), "utf-8")


def _echo(device: str, simulator: str = "") -> str:
    memory = echo_memory(int(device), simulator=Path(simulator) if simulator else None)
    told = f"{ECHO_BYTES >> 20} MiB sent, copied there and fetched are the same"
    if memory is None:
        return told
    return f"{told}; {(memory.total - memory.free) >> 20} of {memory.total >> 20} MiB in use"


def _check_net(engine: str, folder: str, device: str, checkpoint: str = "") -> str:
    if checkpoint:
        return check_layer(Path(folder), Path(checkpoint), device_opener(engine, int(device)))
    with open_engine(identify(Path(folder)), engine=engine, device=int(device)) as opened:
        return check_twice(opened)
