"""The CPU engine of this package with random weights, asked the same questions as its peers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, cast

import numpy as np

from baichuan2_tpu import __version__
from baichuan2_tpu.bench import RandomWeights, shape_config
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.base import Sequence as EngineSequence
from baichuan2_tpu.engine.cpu import CpuEngine
from peers.protocol import Description, Job, made_up_prompt

__all__ = ["OurPeer", "load"]

SCALE_BYTES = 2


class OurPeer:
    """The CPU engine with as many layers as the job asks for."""

    def __init__(self, job: Job) -> None:
        config = replace(shape_config(job.shape, cast("Literal[4, 8]", job.bits)), layers=job.layers)
        weights = RandomWeights(config)
        started = time.perf_counter()
        self._engine = CpuEngine(weights, context=job.context, threads=job.threads)
        head_bytes = _head_bytes(config)
        self.description = Description(
            version=f"baichuan2-tpu {__version__}",
            formats=f"{job.bits} bits, group 64, asymmetric, head 8 bits",
            kernels=self._engine.kernels,
            layers=job.layers,
            block_bytes=self._engine.weight_bytes - head_bytes,
            head_bytes=head_bytes,
            load_s=time.perf_counter() - started,
        )

    def prefill(self, tokens: int) -> float:
        """Read a prompt from an empty context; return the seconds until its logits."""
        with self._engine.open_sequence() as sequence:
            started = time.perf_counter()
            self._next(sequence, made_up_prompt(tokens))
            return time.perf_counter() - started

    def decode(self, prompt_tokens: int, tokens: int) -> float:
        """Return the seconds for greedy tokens after a prompt."""
        with self._engine.open_sequence() as sequence:
            token = self._next(sequence, made_up_prompt(prompt_tokens))
            started = time.perf_counter()
            for _ in range(tokens):
                token = self._next(sequence, [token])
            return time.perf_counter() - started

    def _next(self, sequence: EngineSequence, tokens: Sequence[int]) -> int:
        return int(np.argmax(self._engine.forward([Chunk(sequence, tokens)])[0][-1]))


def _head_bytes(config: ModelConfig) -> int:
    """Return what the head takes: integers, and a scale and a zero per group."""
    assert config.quantization is not None
    integer_bytes = config.quantization.head_bits / 8
    group_bytes = SCALE_BYTES + integer_bytes
    weights = config.vocabulary_size * config.hidden_size
    return round(weights * (integer_bytes + group_bytes / config.quantization.group_size))


def load(job: Job) -> OurPeer:
    """Build the engine for the job's shape."""
    return OurPeer(job)
