"""The process around one program: ``python -m peers.worker NAME JOB``, jobs as JSON on stdin.

Answers go to the stdout the process was started with; whatever a library prints goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from dataclasses import asdict
from typing import TextIO

from peers.protocol import Job, Peer

MODULES = {
    "ours": "peers.ours",
    "llama_cpp": "peers.llama",
    "llama_bench": "peers.llama_bench",
    "onnxruntime": "peers.onnx_linears",
}


def main() -> None:
    """Load the program and answer until stdin ends."""
    name, job = sys.argv[1:]
    # Native libraries print to file descriptor 1, past sys.stdout; keep the real one for answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        peer: Peer = importlib.import_module(MODULES[name]).load(Job.from_json(job))
    except ImportError as error:
        _answer(answers, {"missing": str(error)})
        return
    _answer(answers, asdict(peer.description))
    for line in sys.stdin:
        question = json.loads(line)
        kind = question.pop("kind")
        seconds = peer.prefill(**question) if kind == "prefill" else peer.decode(**question)
        _answer(answers, {"seconds": seconds})


def _answer(stream: TextIO, values: dict[str, object]) -> None:
    print(json.dumps(values), file=stream, flush=True)


if __name__ == "__main__":
    main()
