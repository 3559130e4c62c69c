"""A build of llama.cpp, or of what came from it, through its own ``llama-bench``.

Prefill is its test "pp", decode its test "tg" from an empty context. Each call starts the program anew, which
warms up by itself. Source: tools/llama-bench/README.md of llama.cpp.
"""

from __future__ import annotations

import json
import subprocess
import time
from typing import Any

from peers.protocol import Description, GgufModel, Job

__all__ = ["LlamaBenchPeer", "load"]

BATCH_TOKENS = 512


class LlamaBenchPeer:
    """``llama-bench`` with the GGUF of the job."""

    def __init__(self, model: GgufModel, job: Job) -> None:
        started = time.perf_counter()
        self._command = [
            *job.command,
            *("-m", model.path, "-t", str(job.threads), "-b", str(BATCH_TOKENS), "-ub", str(BATCH_TOKENS)),
            *("-r", "1", "-o", "json"),
        ]
        result = self._run(prompt=1, answer=0)
        self.description = Description(
            version=f"{job.command[0]}, build {result['build_number']} ({result['build_commit']})",
            formats=" ".join([model.formats, *job.command[1:]]),
            kernels="not told",
            layers=job.layers,
            block_bytes=model.block_bytes,
            head_bytes=model.head_bytes,
            load_s=time.perf_counter() - started,
        )

    def prefill(self, tokens: int) -> float:
        """Return the seconds for a prompt."""
        return tokens / float(self._run(prompt=tokens, answer=0)["avg_ts"])

    def decode(self, prompt_tokens: int, tokens: int) -> float:
        """Return the seconds for an answer; a prompt of a few tokens before it changes nothing."""
        del prompt_tokens
        return tokens / float(self._run(prompt=0, answer=tokens)["avg_ts"])

    def _run(self, *, prompt: int, answer: int) -> dict[str, Any]:
        """Run one test. Raises: RuntimeError with what the program said."""
        command = [*self._command, "-p", str(prompt), "-n", str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{command[0]} ended with exit code {done.returncode}: {done.stderr[-500:]}")
        (result,) = json.loads(done.stdout)
        return result


def load(job: Job) -> LlamaBenchPeer:
    """Run the program once, which shows that it can read the GGUF."""
    assert job.gguf is not None, "llama-bench reads a GGUF"
    return LlamaBenchPeer(job.gguf, job)
