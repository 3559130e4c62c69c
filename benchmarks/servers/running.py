"""Start a server in a process of its own, and end it: ``python -m servers.NAME SETTINGS``.

The process says on its standard output, in one line of JSON, where it listens, or what it misses; it ends
with its standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from typing_extensions import Self

__all__ = ["RunningServer", "ServerMissingError"]

BENCHMARKS = Path(__file__).resolve().parents[1]


class ServerMissingError(Exception):
    """The server is not installed for the interpreter that was to run it."""


class RunningServer:
    """A server from its start to the end of ``with``."""

    def __init__(self, name: str, settings: Mapping[str, object], *, python: str) -> None:
        self.name = name
        paths = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [python, "-m", f"servers.{name}", json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{name} ended with exit code {self._process.wait()}; its message is above")
        said = json.loads(line)
        if "missing" in said:
            self.close()
            raise ServerMissingError(f"{name} is not installed for {python} ({said['missing']})")
        self.url: str = said["url"]
        self.version: str = said["version"]

    def close(self) -> None:
        """End the process and wait for it, so that its memory is free."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
