"""Greedy answers of llama.cpp: a job as JSON on stdin, the answers as JSON on stdout.

Run as ``python -m peers.llama_greedy`` by the interpreter that has llama-cpp-python.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from peers.llama import LlamaModel
from peers.protocol import Choice, choose

__all__ = ["answer"]


def main() -> None:
    """Read the job, answer every prompt."""
    job = json.load(sys.stdin)
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    llama = LlamaModel(Path(job["path"]), threads=job["threads"], context=job["context"])
    answers = [answer(llama, ids, job["tokens"], job["stop_ids"]) for ids in job["prompts"]]
    with results:
        json.dump(answers, results)


def answer(llama: LlamaModel, prompt: Sequence[int], tokens: int, stop_ids: Sequence[int]) -> list[Choice]:
    """Return the choices after a prompt, up to a stop id, which is the last."""
    llama.clear()
    choices = [choose(llama.forward(prompt))]
    while len(choices) < tokens and choices[-1].token not in stop_ids:
        choices.append(choose(llama.forward([choices[-1].token])))
    return choices


if __name__ == "__main__":
    main()
