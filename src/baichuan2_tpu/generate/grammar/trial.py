"""Compiling a stranger's grammar in a child process first, with limits of processor time and memory.

What ends or hangs the compiler there costs that child alone. Only what the child compiled within the limits
is compiled in this process, with the same library and the same tokens, and so at the same price. One child is
kept ready; it is replaced when it has died or grown.
Not here: what the grammar is (``grammars``), bounds that need no trial (``schema_bounds``).
Source: setitimer(2), whose SIGPROF ends a process by default; RLIMIT_AS of setrlimit(2).
"""

from __future__ import annotations

import base64
import json
import resource
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

from baichuan2_tpu.errors import QueueFull, RequestError, ShutdownError
from baichuan2_tpu.generate.grammar.compiler import compile_grammar, open_library

__all__ = ["GrammarTrial", "TrialLimits", "serve_trials"]

_WORK = (
    "import json, sys;"
    "sys.path[:] = json.loads(sys.argv[1]);"
    "from baichuan2_tpu.generate.grammar.trial import serve_trials;"
    "serve_trials(*map(int, sys.argv[2:]))"
)
_READY_S = 120  # a vocabulary takes a second to load, on a machine that is busy many
_PATIENCE = 10  # seconds on the clock for each of processor time: others compute beside the child
_GROWN_BYTES = 64 << 20  # a child that holds on to more than this is replaced before the next trial


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """What one grammar may take, and how many may wait for their trial."""

    processor_s: int = 2
    """Seconds of one core; usual grammars take some milliseconds."""
    memory_bytes: int = 256 << 20
    waiting: int = 4


class GrammarTrial:
    """Tries grammars for one vocabulary in a child process, one at a time, from any thread.

    ``tokens`` is the text of every token, ``special_ids`` those without one, ``eos_id`` the end.
    """

    def __init__(
        self,
        tokens: Sequence[bytes],
        special_ids: Sequence[int],
        eos_id: int,
        limits: TrialLimits | None = None,
    ) -> None:
        self._limits = limits or TrialLimits()
        self._vocabulary = {
            "tokens": [base64.b64encode(token).decode() for token in tokens],
            "special_ids": list(special_ids),
            "eos_id": eos_id,
        }
        self._child: subprocess.Popen[bytes] | None = None
        self._turn = threading.Lock()
        self._places = threading.BoundedSemaphore(self._limits.waiting + 1)
        self._is_closed = False

    def check(self, grammar: str, cause: str = "") -> None:
        """Compile a grammar in the child; ``cause`` says what in it is likely to be costly.

        Raises: RequestError where it cannot be compiled, or not within the limits; QueueFull where as many
        wait as may; ShutdownError once it is closed.
        """
        if not self._places.acquire(blocking=False):
            raise QueueFull(
                f"{self._limits.waiting} new schemas wait to be compiled already; try again in 1 s",
                retry_after_s=1,
            )
        try:
            with self._turn:
                self._try(grammar, cause)
        finally:
            self._places.release()

    def prove(self, grammar: str) -> None:
        """Try a grammar that can be compiled, unless a trial runs: that one ends within the limits.

        Raises: RequestError when it is not compiled.
        """
        if self._turn.acquire(blocking=False):
            try:
                self._try(grammar, "")
            finally:
                self._turn.release()

    def warm_up(self) -> None:
        """Start the child before a request needs it."""
        with self._turn:
            self._ready_child()

    def close(self) -> None:
        """End the child; closing twice is allowed."""
        self._is_closed = True
        child = self._child  # also while a trial holds the turn, which then ends with an error
        if child is not None:
            child.kill()
        with self._turn:
            self._end_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _try(self, grammar: str, cause: str) -> None:
        child = self._ready_child()
        answer = _ask(child, {"grammar": grammar}, self._limits.processor_s * _PATIENCE)
        if answer is None:
            code = self._end_child()
            self._check_open()
            raise RequestError(self._explain(code, cause))
        if int(str(answer["grown_bytes"])) > _GROWN_BYTES:
            self._end_child()
        if answer["error"]:
            raise RequestError(str(answer["error"]))

    def _ready_child(self) -> subprocess.Popen[bytes]:
        self._check_open()
        if self._child is None or self._child.poll() is not None:
            self._end_child()
            self._child = _start(self._limits)
            if _ask(self._child, self._vocabulary, _READY_S) is None:
                code = self._end_child()
                self._check_open()
                raise RequestError(f"the process that compiles schemas did not start (exit code {code})")
        return self._child

    def _check_open(self) -> None:
        if self._is_closed:
            raise ShutdownError("the server stops and compiles no more schemas; try another one")

    def _end_child(self) -> int:
        """Kill the child, if there is one, and return its exit code as it was without us."""
        child, self._child = self._child, None
        if child is None:
            return 0
        try:
            code = child.wait(0.2)
        except subprocess.TimeoutExpired:  # it lives, and is too slow or too large
            child.kill()
            child.wait()
            code = -signal.SIGPROF
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()
        return code

    def _explain(self, code: int, cause: str) -> str:
        named = f"; the likely cause is {cause}" if cause else ""
        if code == -signal.SIGPROF:
            allowed = f"{self._limits.processor_s} s of processor time"
        else:
            allowed = f"{self._limits.memory_bytes >> 20} MB of memory"
        return f"the grammar takes more than {allowed} to compile{named}; make it simpler"


def _start(limits: TrialLimits) -> subprocess.Popen[bytes]:
    # -c alone would import from the user's folder; ours is found where we found it.
    paths = json.dumps([path for path in sys.path if path])
    words = [str(limits.processor_s), str(limits.memory_bytes)]
    return subprocess.Popen(  # noqa: S603 - a list, no shell
        [sys.executable, "-I", "-c", _WORK, paths, *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # the library prints what the grammar says
        start_new_session=True,  # Ctrl-C is for us
    )


def _ask(child: subprocess.Popen[bytes], question: object, timeout_s: float) -> dict[str, object] | None:
    """Send one line and return the answer's; None when the child died or took too long."""
    assert child.stdin is not None  # noqa: S101 - our own invariant
    assert child.stdout is not None  # noqa: S101 - our own invariant
    try:
        child.stdin.write(json.dumps(question).encode() + b"\n")
        child.stdin.flush()
    except OSError:
        return None
    readable, _, _ = select.select([child.stdout], [], [], timeout_s)
    line = child.stdout.readline() if readable else b""
    return json.loads(line) if line.endswith(b"\n") else None


def serve_trials(processor_s: int, memory_bytes: int) -> None:
    """Be the child: read a vocabulary, then compile a grammar per line, until the parent closes the pipe."""
    vocabulary = json.loads(sys.stdin.buffer.readline())
    tokens = [base64.b64decode(token) for token in vocabulary["tokens"]]
    library = open_library(tokens, vocabulary["special_ids"], vocabulary["eos_id"])
    most_bytes = _virtual_bytes() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _answer({"ready": True})
    start_bytes = _resident_bytes()
    for line in sys.stdin.buffer:
        error = ""
        signal.setitimer(signal.ITIMER_PROF, processor_s)
        try:
            compile_grammar(library, json.loads(line)["grammar"])
        except RequestError as exc:
            error = str(exc)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer({"error": error, "grown_bytes": _resident_bytes() - start_bytes})


def _answer(values: object) -> None:
    sys.stdout.buffer.write(json.dumps(values).encode() + b"\n")
    sys.stdout.buffer.flush()


def _virtual_bytes() -> int:
    return _statm(0)


def _resident_bytes() -> int:
    return _statm(1)


def _statm(column: int) -> int:
    return int(Path("/proc/self/statm").read_text("ascii").split()[column]) * resource.getpagesize()
