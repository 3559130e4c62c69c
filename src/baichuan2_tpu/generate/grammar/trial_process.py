"""A child process that compiles grammars, each in a child of its own with limits of time and memory.

The child loads the vocabulary once, which takes a second by Baichuan2's, and forks for every grammar, which
takes milliseconds: what ends or hangs the compiler costs one fork. A fork is killed when its socket is
closed, and the child ends with its control socket, so that nothing outlives who asked for it.
Not here: whose turn it is, and what the limits are (``trial``).
Source: setitimer(2), whose SIGPROF ends a process by default; RLIMIT_AS of setrlimit(2); SCM_RIGHTS of
unix(7), by which each grammar's socket is handed over.
"""

from __future__ import annotations

import base64
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from llguidance import LLTokenizer

from baichuan2_tpu.errors import RequestError, ShutdownError
from baichuan2_tpu.generate.caller import Caller
from baichuan2_tpu.generate.grammar.compiler import compile_grammar, open_library
from baichuan2_tpu.programs import own_command

__all__ = ["TrialProcess", "TrialResult", "serve_trials"]

_SMALL = 'start: "a"'
_READY_S = 120  # a vocabulary takes a second to load, on a machine that is busy many
_PATIENCE = 10  # seconds on the clock for each of processor time: others compute beside the child
_LEAST_PATIENCE_S = 5
_END_S = 1  # for the child to end by itself


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended: compiled, refused with an ``error``, or killed for its time or its memory.

    Units: ``processor_s`` it took; ``grown_bytes`` more memory were held when the grammar was compiled.
    """

    error: str = ""
    is_too_slow: bool = False
    is_too_large: bool = False
    processor_s: float = 0
    grown_bytes: int = 0


class TrialProcess:
    """Runs trials for one vocabulary, any number at once, from any thread.

    ``tokens`` is the text of every token, ``special_ids`` those without one, ``eos_id`` the end.
    """

    def __init__(
        self, tokens: Sequence[bytes], special_ids: Sequence[int], eos_id: int, memory_bytes: int
    ) -> None:
        vocabulary = {
            "tokens": [base64.b64encode(token).decode() for token in tokens],
            "special_ids": list(special_ids),
            "eos_id": eos_id,
        }
        self._vocabulary = json.dumps(vocabulary).encode()
        self._memory_bytes = memory_bytes
        self._lock = Lock()  # guards what follows
        self._child: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._is_proven = False
        self._is_closed = False

    def run(self, grammar: str, processor_s: float, caller: Caller) -> TrialResult:
        """Compile a grammar within some seconds of one core, unless the caller leaves.

        Raises: ShutdownError once it is closed; RequestError where the child cannot be started.
        """
        ours, theirs = socket.socketpair()
        with closing(ours):
            with closing(theirs):
                self._hand_over(theirs)
            patience_s = max(_LEAST_PATIENCE_S, processor_s * _PATIENCE)
            ours.settimeout(patience_s if self._is_proven else _READY_S)
            with caller.on_leave(lambda: _shut(ours)):
                answer = _ask(ours, {"grammar": grammar, "processor_s": processor_s})
        self._is_proven = self._is_proven or bool(answer)
        return self._read(answer, processor_s)

    def close(self) -> None:
        """End the child and every trial; closing twice is allowed."""
        self._is_closed = True
        control = self._control
        if control is not None:  # also while the child is being started
            _shut(control)
        with self._lock:
            self._end()

    def _read(self, answer: Mapping[str, object], processor_s: float) -> TrialResult:
        if self._is_closed:
            raise ShutdownError("the server stops and compiles no more schemas; try another one")
        if "signal" in answer:
            is_too_slow = answer["signal"] == signal.SIGPROF
            return TrialResult(is_too_slow=is_too_slow, is_too_large=not is_too_slow, processor_s=processor_s)
        if not answer:  # the clock ran out, or the child was killed
            return TrialResult(is_too_slow=True, processor_s=processor_s)
        seconds, grown_bytes = float(str(answer["processor_s"])), int(str(answer["grown_bytes"]))
        return TrialResult(str(answer["error"]), processor_s=seconds, grown_bytes=grown_bytes)

    def _hand_over(self, trial: socket.socket) -> None:
        """Give the child the socket of a trial; a child that has died is replaced."""
        with self._lock:
            for _ in range(2):
                control = self._ready_control()
                with suppress(OSError):
                    socket.send_fds(control, [b"t"], [trial.fileno()])
                    return
                self._end()
        raise RequestError("the process that compiles schemas ends as soon as it is started; see its limits")

    def _ready_control(self) -> socket.socket:
        if self._is_closed:
            raise ShutdownError("the server stops and compiles no more schemas; try another one")
        if self._child is not None and self._child.poll() is not None:
            self._end()
        if self._control is None:
            self._start()
        assert self._control is not None  # noqa: S101 - our own invariant
        return self._control

    def _start(self) -> None:
        self._control, theirs = socket.socketpair()
        with closing(theirs):
            self._child = subprocess.Popen(  # noqa: S603 - a list, no shell
                own_command(serve_trials, theirs.fileno(), self._memory_bytes),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # the library prints what the grammar says
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for us
            )
        self._is_proven = False
        assert self._child.stdin is not None  # noqa: S101 - our own invariant
        with suppress(OSError), self._child.stdin as stdin:
            stdin.write(self._vocabulary)

    def _end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._child is not None:
            try:
                self._child.wait(_END_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
            self._child = None


def _shut(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


def _ask(trial: socket.socket, question: Mapping[str, object]) -> dict[str, object]:
    """Send a line and return the answer's; nothing when the other end was closed, or took too long."""
    try:
        trial.sendall(json.dumps(question).encode() + b"\n")
        with trial.makefile("rb") as lines:
            line = lines.readline()
    except OSError:
        return {}
    return json.loads(line) if line.endswith(b"\n") else {}


def serve_trials(control: str, memory_bytes: str) -> None:
    """Be the child: read a vocabulary, then fork for each socket that comes, until ``control`` is closed."""
    vocabulary = json.loads(sys.stdin.buffer.read())
    tokens = [base64.b64decode(token) for token in vocabulary["tokens"]]
    library = open_library(tokens, vocabulary["special_ids"], vocabulary["eos_id"])
    with socket.socket(fileno=int(control)) as handing:
        _TrialChild(library, handing, int(memory_bytes)).serve()


class _TrialChild:
    """The child's own side: a process without threads, so that it may fork."""

    def __init__(self, library: LLTokenizer, control: socket.socket, memory_bytes: int) -> None:
        self._library = library
        self._control = control
        self._memory_bytes = memory_bytes
        self._trials: dict[int, socket.socket] = {}  # of each process that compiles
        self._selector = selectors.DefaultSelector()
        self._ended, wakeup = socket.socketpair()
        for end in (self._ended, wakeup):
            end.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(wakeup.fileno())
        self._wakeup = wakeup
        self._selector.register(control, selectors.EVENT_READ)
        self._selector.register(self._ended, selectors.EVENT_READ)

    def serve(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._control:
                    _, files, *_ = socket.recv_fds(self._control, 1, 1)
                    if not files:
                        self._kill(list(self._trials))
                        return
                    self._start(socket.socket(fileno=files[0]))
                elif key.fileobj is self._ended:
                    self._collect()
                else:
                    self._selector.unregister(key.fileobj)
                    self._kill([key.data])

    def _start(self, trial: socket.socket) -> None:
        with trial.makefile("rb") as lines:
            line = lines.readline()
        if not line.endswith(b"\n"):
            trial.close()
            return
        process = os.fork()
        if process == 0:
            try:
                self._control.close()
                self._compile(trial, json.loads(line))
            finally:  # whatever it met, the fork does nothing else
                os._exit(1)
        self._trials[process] = trial
        self._selector.register(trial, selectors.EVENT_READ, process)

    def _compile(self, trial: socket.socket, question: Mapping[str, object]) -> None:
        """Be the fork: compile one grammar, answer, and end."""
        signal.set_wakeup_fd(-1)
        compile_grammar(self._library, _SMALL)  # a fork has no memory of its own until it writes
        virtual_bytes, start_bytes = _memory_use()
        most_bytes = virtual_bytes + self._memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.setitimer(signal.ITIMER_PROF, float(str(question["processor_s"])))
        error = ""
        matcher = None
        try:
            matcher = compile_grammar(self._library, str(question["grammar"]))
        except RequestError as exc:
            error = str(exc)
        spent_s = sum(os.times()[:2])
        grown_bytes = 0 if matcher is None else max(0, _memory_use()[1] - start_bytes)
        answer = {"error": error, "processor_s": spent_s, "grown_bytes": grown_bytes}
        trial.sendall(json.dumps(answer).encode() + b"\n")
        os._exit(0)

    def _collect(self) -> None:
        """Report how processes ended that could not do so themselves."""
        with suppress(BlockingIOError):
            self._ended.recv(4096)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                process, status = ended
                trial = self._trials.pop(process)
                with suppress(KeyError):
                    self._selector.unregister(trial)
                if status:
                    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else signal.SIGABRT
                    with suppress(OSError):
                        trial.sendall(json.dumps({"signal": number}).encode() + b"\n")
                trial.close()

    def _kill(self, processes: Sequence[int]) -> None:
        for process in processes:
            os.kill(process, signal.SIGKILL)  # it is ours until it is collected


def _memory_use() -> tuple[int, int]:
    """Return the virtual and the resident bytes of this process."""
    pages = Path("/proc/self/statm").read_text("ascii").split()
    return int(pages[0]) * resource.getpagesize(), int(pages[1]) * resource.getpagesize()
