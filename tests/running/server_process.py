"""``baichuan2 serve`` in a process of its own, as a user starts it; the tests' own clients talk to it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from queue import Empty, Queue
from threading import Thread
from types import TracebackType

from typing_extensions import Self

import baichuan2_tpu

__all__ = ["ServerProcess"]

_COMMAND = "from baichuan2_tpu.cli import main; main()"
_PATIENCE_S = 120  # for a machine that has much else to do


class ServerProcess:
    """A server on a free port; it is killed at the end of ``with`` if it still runs.

    ``lines`` is what it wrote to standard error so far; in ``folder`` it has its home and temporary files.
    """

    def __init__(self, model: Path | str, folder: Path, *options: object, **environment: str) -> None:
        self.lines: list[str] = []
        self._new: Queue[str | None] = Queue()
        folder.mkdir(parents=True, exist_ok=True)
        package = Path(baichuan2_tpu.__file__).parents[1]  # the one under test, whatever the folder
        homes = dict.fromkeys(("HOME", "TMPDIR", "XDG_CACHE_HOME", "XDG_STATE_HOME"), str(folder))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, "serve", str(model), "--port", "0", *map(str, options)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | homes | {"PYTHONPATH": str(package)} | environment,
        )
        self._reader = Thread(target=self._read)
        self._reader.start()
        self.url = self._wait_for_url()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return the first new line that holds a pattern."""
        while True:
            try:
                line = self._new.get(timeout=_PATIENCE_S)
            except Empty:
                raise AssertionError(f"no line with {pattern!r} came; seen: {self.lines}") from None
            assert line is not None, f"the server ended before it said {pattern!r}: {self.lines}"
            if match := re.search(pattern, line):
                return match

    def wait(self) -> int:
        """Wait for its end and return the exit code."""
        code = self.process.wait(_PATIENCE_S)
        self._reader.join()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _wait_for_url(self) -> str:
        try:
            return self.wait_for(r"event=ready .*url=(\S+)").group(1)
        except AssertionError:
            self._end()
            raise

    def _end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            self._new.put(line)
        self._new.put(None)
