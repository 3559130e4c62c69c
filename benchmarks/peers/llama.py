"""llama.cpp through the C interface of ``llama-cpp-python``: batches of ids, no tokenizer, no sampler.

Settings are llama-bench's defaults, with a micro-batch as large as the batch. Source: ``llama.h``.
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Sequence
from pathlib import Path

import llama_cpp.llama_cpp as library
import numpy as np
from numpy.typing import NDArray

from peers.protocol import Description, GgufModel, Job, made_up_prompt

__all__ = ["LlamaModel", "load"]

BATCH_TOKENS = 512


@library.llama_log_callback
def _discard(level: int, text: bytes, data: object) -> None:
    """Discard llama.cpp's log lines."""


class LlamaModel:
    """A GGUF with one sequence of context."""

    def __init__(self, path: Path, *, threads: int, context: int) -> None:
        library.llama_log_set(_discard, None)
        library.llama_backend_init()
        model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        if not model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._model = model
        self._context = library.llama_init_from_model(model, _context_settings(threads, context))
        self.vocabulary_size = library.llama_vocab_n_tokens(library.llama_model_get_vocab(model))

    def clear(self) -> None:
        """Empty the context."""
        library.llama_memory_clear(library.llama_get_memory(self._context), True)

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits of the last one, valid until the next call.

        Shapes: (T,) -> (V,).
        """
        # llama_decode refuses more tokens than n_batch; it counts positions itself.
        for start in range(0, len(tokens), BATCH_TOKENS):
            piece = tokens[start : start + BATCH_TOKENS]
            ids = (library.llama_token * len(piece))(*piece)
            status = library.llama_decode(self._context, library.llama_batch_get_one(ids, len(piece)))
            if status:
                raise RuntimeError(f"llama_decode returned {status} at token {start}")
        # A batch made by get_one has logits for its last token only.
        logits = library.llama_get_logits_ith(self._context, -1)
        return np.ctypeslib.as_array(logits, (self.vocabulary_size,))


def _context_settings(threads: int, context: int) -> library.llama_context_params:
    settings = library.llama_context_default_params()
    settings.n_ctx = context
    settings.n_batch = settings.n_ubatch = BATCH_TOKENS
    settings.n_threads = settings.n_threads_batch = threads
    return settings


class LlamaPeer:
    """llama.cpp with the GGUF of the job."""

    def __init__(self, model: GgufModel, job: Job) -> None:
        started = time.perf_counter()
        self._llama = LlamaModel(Path(model.path), threads=job.threads, context=job.context)
        self.description = Description(
            version=f"llama-cpp-python {importlib.metadata.version('llama-cpp-python')}",
            formats=model.formats,
            kernels=_instruction_sets(library.llama_print_system_info().decode()),
            layers=job.layers,
            block_bytes=model.block_bytes,
            head_bytes=model.head_bytes,
            load_s=time.perf_counter() - started,
        )

    def prefill(self, tokens: int) -> float:
        """Read a prompt from an empty context; return the seconds until its logits."""
        self._llama.clear()
        started = time.perf_counter()
        self._llama.forward(made_up_prompt(tokens))
        return time.perf_counter() - started

    def decode(self, prompt_tokens: int, tokens: int) -> float:
        """Return the seconds for greedy tokens after a prompt."""
        self._llama.clear()
        token = int(np.argmax(self._llama.forward(made_up_prompt(prompt_tokens))))
        started = time.perf_counter()
        for _ in range(tokens):
            token = int(np.argmax(self._llama.forward([token])))
        return time.perf_counter() - started


def _instruction_sets(info: str) -> str:
    """Return what llama.cpp says it was built with: "CPU : SSE3 = 1 | AVX2 = 1 | ..." as names."""
    parts = (part.rpartition(":")[2].partition("=") for part in info.split("|"))
    return " ".join(name.strip() for name, _, value in parts if value.strip() == "1")


def load(job: Job) -> LlamaPeer:
    """Load the GGUF of the job."""
    assert job.gguf is not None, "llama.cpp reads a GGUF"
    return LlamaPeer(job.gguf, job)
