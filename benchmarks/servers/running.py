"""Start a server in a process of its own, and end it: ``python -m servers.NAME SETTINGS``.

The process writes one line of JSON to its standard output: its URL and version, or the package it lacks. It
ends when its standard input does.
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
    """A server that runs until the end of ``with``."""

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
        answer = json.loads(line)
        if "missing" in answer:
            self.close()
            raise ServerMissingError(f"{name} is not installed for {python} ({answer['missing']})")
        self.url: str = answer["url"]
        self.version: str = answer["version"]

    def close(self) -> None:
        """End the process and wait for it, so that its memory is free."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
