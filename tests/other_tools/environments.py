"""The other tools that we are compared with: their pinned versions, in an environment of their own.

It is made in the user's cache when it is first needed. Not here: what they are asked (``scripts``).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ADAPTERS", "GPTQ_READERS", "LLAMA_CPP", "Peer", "PeerMissingError", "ask", "install"]

_SCRIPTS = Path(__file__).resolve().parent / "scripts"
_COMPLETE = "complete"
_PATIENCE_S = 900


@dataclass(frozen=True, slots=True)
class Peer:
    """An environment: ``packages`` with what they need, then ``alone`` without what they ask for."""

    name: str
    packages: tuple[str, ...]
    alone: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the environment is, in the user's cache."""
        cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
        return cache / "baichuan2-tpu" / "test-peers" / self.name


class PeerMissingError(Exception):
    """A tool cannot be installed on this machine; the message says why."""


ADAPTERS = Peer(
    "transformers-5.24.0-peft-0.21.2",
    (
        "torch==2.13.0",
        "transformers==5.24.0",
        "peft==0.21.2",
    ),
)
LLAMA_CPP = Peer("xllamacpp-2026.10.11549", ("xllamacpp==2026.10.11549",))
GPTQ_READERS = Peer(
    "transformers-5.24.0-gptqmodel-7.7.0",
    (
        "torch==2.13.0",
        "transformers==5.24.0",
        "accelerate==1.15.0",
        "sentencepiece==0.2.3",
        "protobuf==7.36.2",
        # What GPTQModel imports where it only reads.
        "defuser==0.0.28",
        "device-smi==0.5.7",
        "logbar==0.4.15",
        "pillow",
        "pypcre==0.6.4",
        "requests",
        "threadpoolctl",
        "tokenicer==0.0.14",
    ),
    # GPTQModel asks for a newer torch, which is a CUDA build of several GB, and for what quantising needs.
    ("optimum==2.3.0", "gptqmodel==7.7.0"),
)


def install(peer: Peer) -> None:
    """Make the environment unless it is complete; one that was broken off is made anew.

    Side effect: packages are downloaded into the user's cache.
    Raises: PeerMissingError with the last lines of the installer.
    """
    if (peer.folder / _COMPLETE).exists():
        return
    shutil.rmtree(peer.folder, ignore_errors=True)
    _run(sys.executable, "-m", "venv", peer.folder)
    pip = (peer.folder / "bin" / "python", "-m", "pip", "install", "-q")
    _run(*pip, *peer.packages)
    if peer.alone:
        _run(*pip, "--no-deps", *peer.alone)
    (peer.folder / _COMPLETE).touch()


def ask(peer: Peer, script: str, question: dict[str, Any]) -> dict[str, Any]:
    """Run a script of a tool on a question in JSON and return its answer, offline.

    Raises: AssertionError with what the script wrote when it fails.
    """
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [str(peer.folder / "bin" / "python"), str(_SCRIPTS / script)],
        input=json.dumps(question),
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, f"{script}:\n{done.stdout}\n{done.stderr}"
    # The tools print on their own account.
    answers = [line for line in done.stdout.splitlines() if line.startswith('{"answer"')]
    answer: dict[str, Any] = json.loads(answers[-1])["answer"]
    return answer


def _run(*command: object) -> None:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join(done.stderr.splitlines()[-5:])
        raise PeerMissingError(f"{command[0]} ended with exit code {done.returncode}:\n{last}")
