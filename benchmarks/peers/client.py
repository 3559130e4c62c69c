"""The other end of ``worker``: start a program in its own process and ask it.

Not here: what the answers mean.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from typing_extensions import Self

from peers.protocol import Description, Job

__all__ = ["PeerMissingError", "RunningPeer"]

BENCHMARKS = Path(__file__).resolve().parents[1]


class PeerMissingError(Exception):
    """The program is not installed for the interpreter that was to run it."""


class RunningPeer:
    """One program in a child process that ends with the ``with`` block, shown as ``label``."""

    def __init__(self, name: str, job: Job, *, python: str, label: str | None = None) -> None:
        self.name = label or name
        paths = os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            [python, "-m", "peers.worker", name, json.dumps(asdict(job))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": paths},
        )
        answer = self._read()
        if "missing" in answer:
            self.close()
            raise PeerMissingError(
                f"{name} is not installed for {python} ({answer['missing']}); "
                "run: pip install -r benchmarks/requirements.txt"
            )
        self.description = Description(**answer)

    def prefill(self, tokens: int) -> float:
        """Return the seconds for a prompt; see ``Peer``."""
        return self._ask(kind="prefill", tokens=tokens)

    def decode(self, prompt_tokens: int, tokens: int) -> float:
        """Return the seconds for an answer; see ``Peer``."""
        return self._ask(kind="decode", prompt_tokens=prompt_tokens, tokens=tokens)

    def close(self) -> None:
        """End the process and wait for it, so that its memory is free."""
        assert self._process.stdin is not None
        # The worker's loop ends with its stdin.
        self._process.stdin.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, **question: object) -> float:
        assert self._process.stdin is not None
        print(json.dumps(question), file=self._process.stdin, flush=True)
        return float(self._read()["seconds"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"{self.name} ended with exit code {self._process.wait()}; its message is above"
            )
        return json.loads(line)
