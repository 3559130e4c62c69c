"""llama.cpp's own server from the ``xllamacpp`` wheel: continuous batching, a slot for every client.

The interpreter that has the wheel runs it. Settings are the defaults except slots, threads and context.
Source: ``common_params`` of llama.cpp, as xllamacpp 2026.10 names its fields.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys


def main() -> None:
    """Serve until standard input ends."""
    given = json.loads(sys.argv[1])
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        xllamacpp = importlib.import_module("xllamacpp")
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), file=results, flush=True)
        return
    settings = xllamacpp.CommonParams()
    settings.model.path = given["gguf"]
    settings.n_parallel = given["running"]
    settings.n_ctx = given["running"] * given["context"]
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = given["threads"]
    settings.verbosity = 0
    settings.ui = False
    server = xllamacpp.Server(settings)
    version = f"xllamacpp {importlib.metadata.version('xllamacpp')}"
    print(json.dumps({"url": server.listening_address, "version": version}), file=results, flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
