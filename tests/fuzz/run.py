"""Read damaged files until their number is reached: each is read, or refused in one line, and nothing else.

Every reader runs in a process of its own with a bound on its memory, so that one that ends the process, or
fills the memory, is found too. ``python -m fuzz.run --help`` says how; scripts/fuzz sets the paths.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from baichuan2_tpu.errors import Baichuan2Error
from fuzz.mutations import mutate
from fuzz.readers import READERS

__all__ = ["Outcome", "fuzz", "main"]

_MEMORY_BYTES = 4 << 30
"""Of address space: libraries alone reserve one."""
_MOST_MESSAGE = 1000


@dataclass(frozen=True, slots=True)
class Outcome:
    """What happened to the inputs of one reader. Units: ``longest_s`` of one input."""

    reader: str
    inputs: int
    refused: int
    longest_s: float
    peak_bytes: int


def fuzz(reader_name: str, inputs: int, seed: int, note: Path | None = None) -> Outcome:
    """Read so many damaged files with one reader.

    ``note`` is a file that names the input at work, for when the process dies.
    Raises: AssertionError with the input's number for a fault, or a refusal that is no short line.
    """
    reader = READERS[reader_name]
    refused, longest_s = 0, 0.0
    with tempfile.TemporaryDirectory(prefix="baichuan2-fuzz-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        path = reader.write(folder)
        content = path.read_bytes()
        for number in range(inputs):
            if note is not None:
                note.write_text(f"{reader_name}: input {number} of seed {seed}")
            path.write_bytes(mutate(content, random.Random(f"{seed} {reader_name} {number}")))
            start_s = time.perf_counter()
            refused += _is_refused(reader_name, number, lambda: reader.read(folder))
            longest_s = max(longest_s, time.perf_counter() - start_s)
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Outcome(reader_name, inputs, refused, round(longest_s, 2), peak_bytes)


def _is_refused(reader_name: str, number: int, read: object) -> bool:
    assert callable(read)
    try:
        read()
    except Baichuan2Error as error:
        message = str(error)
        is_line = len(message) <= _MOST_MESSAGE and message.isprintable()
        assert is_line, f"{reader_name}, input {number}: the refusal is {message[:300]!r}"
        return True
    except Exception as error:
        trace = traceback.format_exc()
        raise AssertionError(f"{reader_name}, input {number}: {type(error).__name__}\n{trace}") from error
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every reader in a process of its own; return 1 where one failed."""
    parser = argparse.ArgumentParser(description="Read damaged files with every reader.")
    parser.add_argument("readers", nargs="*", help=f"which: {', '.join(READERS)}; all by default")
    parser.add_argument("--inputs", type=int, default=500, help="for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="in this process, with its tracebacks")
    options = parser.parse_args(arguments)
    names: list[str] = options.readers or list(READERS)
    if options.here:
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
        for name in names:
            print(json.dumps(asdict(fuzz(name, options.inputs, options.seed, _note_path(name)))))
        return 0
    failures = [name for name in names if not _run_apart(name, options.inputs, options.seed)]
    print(
        f"{len(names) - len(failures)} of {len(names)} readers held"
        + "".join(f"; {name}" for name in failures)
    )
    return 1 if failures else 0


def _run_apart(name: str, inputs: int, seed: int) -> bool:
    command = [sys.executable, "-m", "fuzz.run", "--here", "--inputs", str(inputs), "--seed", str(seed), name]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    note = _note_path(name)
    if run.returncode == 0:
        outcome = Outcome(**json.loads(run.stdout))
        print(
            f"{name}: {outcome.inputs} inputs, {outcome.refused} refused, the longest {outcome.longest_s} s, "
            f"at most {outcome.peak_bytes >> 20} MB",
            flush=True,
        )
    else:
        at = note.read_text() if note.exists() else "before the first input"
        print(f"{name}: exit code {run.returncode} at {at}\n{run.stderr[-1500:]}", flush=True)
    shutil.rmtree(note.parent, ignore_errors=True)
    return run.returncode == 0


def _note_path(name: str) -> Path:
    folder = Path(tempfile.gettempdir()) / f"baichuan2-fuzz-{name.replace(' ', '-')}"
    folder.mkdir(exist_ok=True)
    return folder / "input"


if __name__ == "__main__":
    sys.exit(main())
