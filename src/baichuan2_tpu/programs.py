"""Run other programs so that none outlives this process, even when it is killed; and this package again.

Not here: which programs (``fetch.vendor``, ``compile.tpuc``).
Source: PR_SET_PDEATHSIG is 1 in linux/prctl.h.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

__all__ = ["kill_program", "own_command", "start_program"]

# Both are run by Python in front of the program, with the number of this process and the command. A process
# that has ended before its child could ask for a signal is no longer the parent.
_BECOME_PROGRAM = (
    "import ctypes, os, signal, sys;"
    "ctypes.CDLL(None).prctl(1, signal.SIGKILL);"
    "os.getppid() == int(sys.argv[1]) or os._exit(1);"
    "os.execve(sys.argv[2], sys.argv[2:], os.environ)"
)
_LEAD_PROGRAM = (
    "import ctypes, os, signal, subprocess, sys;"
    "signal.signal(signal.SIGTERM, lambda *_: os.killpg(0, signal.SIGKILL));"
    "ctypes.CDLL(None).prctl(1, signal.SIGTERM);"
    "os.getppid() == int(sys.argv[1]) or os._exit(1);"
    "sys.exit(subprocess.call(sys.argv[2:]))"
)


def own_command(function: Callable[..., object], *words: object) -> list[str]:
    """Return a command that calls a function of this package, with its words as texts, in another process."""
    # -I, for -c alone imports from the user's folder; the paths lead to this package, and to a vendor's.
    paths = json.dumps([path for path in sys.path if path])
    code = (
        "import json, sys;"
        "sys.path[:] = json.loads(sys.argv[1]);"
        f"from {function.__module__} import {function.__name__} as work;"
        "work(*sys.argv[2:])"
    )
    return [sys.executable, "-I", "-c", code, paths, *map(str, words)]


def start_program(
    command: Sequence[str],
    folder: Path,
    output: IO[bytes],
    *,
    environment: Mapping[str, str] | None = None,
    has_children: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program in ``folder``, in a process group of its own, with nothing on its standard input.

    ``has_children`` is for one that starts others, which then die too; where a signal ends it, the exit code
    does not say which.
    """
    front = _LEAD_PROGRAM if has_children else _BECOME_PROGRAM
    return subprocess.Popen(  # noqa: S603 - a list, no shell
        [sys.executable, "-I", "-S", "-c", front, str(os.getpid()), *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def kill_program(program: subprocess.Popen[bytes]) -> None:
    """Kill a program and everything in its group; no effect on one that has ended."""
    with suppress(ProcessLookupError):
        os.killpg(program.pid, signal.SIGKILL)
