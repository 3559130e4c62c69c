"""Continue prompts greedily with llama.cpp, from the ``xllamacpp`` wheel.

Reads a question from standard input: ``gguf``, ``prompts`` (lists of ids), ``count`` (tokens to add to each).
Prints one line: the new ids of each prompt.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from typing import Any

import xllamacpp

CONTEXT = 256


def post(url: str, values: dict[str, Any]) -> dict[str, Any]:
    """Send JSON and return the answer's."""
    request = urllib.request.Request(url, json.dumps(values).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def main() -> None:
    """Answer the question."""
    question = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp prints on its own account
    settings = xllamacpp.CommonParams()
    settings.model.path = question["gguf"]
    settings.n_parallel, settings.n_ctx = 1, CONTEXT
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.verbosity = 0
    settings.ui = False
    server = xllamacpp.Server(settings)
    ids = []
    for prompt in question["prompts"]:
        asked = {
            "prompt": prompt,
            "n_predict": question["count"],
            "temperature": 0,
            "ignore_eos": True,
            "return_tokens": True,
        }
        ids.append(post(f"{server.listening_address}/completion", asked)["tokens"])
    print(json.dumps({"answer": {"ids": ids}}), file=answers, flush=True)


if __name__ == "__main__":
    main()
