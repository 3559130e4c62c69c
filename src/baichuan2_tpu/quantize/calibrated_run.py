"""Quantise layers one after another, calibrated, so that it can be stopped and continued.

All windows of calibration text go through the float layer, and for ``gptq`` through the quantised one too,
before the next is read. Their states lie in a file beside the finished layers, where the next run finds them.
Not here: one layer (``gptq_layer``, ``scale_layer``), the text (``calibration_text``), files without layers
(``driver``).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.config import Method, ModelConfig
from baichuan2_tpu.files import whole_file
from baichuan2_tpu.quantize.calibration_text import Windows
from baichuan2_tpu.quantize.gptq_layer import CalibratedLayer, quantize_head
from baichuan2_tpu.quantize.journal import Journal
from baichuan2_tpu.quantize.plan import Plan, Shard
from baichuan2_tpu.quantize.quantized_layer import QuantizedLayer
from baichuan2_tpu.quantize.scale_layer import scale_layer
from baichuan2_tpu.quantize.shard_file import write_shard
from baichuan2_tpu.reference.float_model import FloatModel

__all__ = ["CalibratedRun", "scratch_bytes"]

_SCRATCH = "inputs.tmp"
_FLOAT32_BYTES = 4


def scratch_bytes(config: ModelConfig, windows: Windows, method: Method) -> int:
    """Return the disk that the states before and behind a layer take, and gptq's widest inputs in it."""
    widest = max(config.intermediate_size, config.heads * config.head_size) if method == "gptq" else 0
    numbers = windows.count * windows.length * (2 * config.hidden_size + widest)
    return _paths(method) * numbers * _FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class CalibratedRun:
    """The layers of one checkpoint, and what of them is done."""

    checkpoint: FloatCheckpoint
    plan: Plan
    journal: Journal
    tokens: Callable[[], NDArray[np.int32]]
    """Returns the windows of text, (W, T); called only where there are no states to continue from."""

    pool: Executor

    def write(self, finished: Callable[[], None]) -> None:
        """Write every layer's file that is not done yet, and by gptq a head of 4 bits.

        Raises: CheckpointError for a weight that is not allowed, or inputs that are not finite.
        """
        shards = self.plan.shards
        if any(shard.file not in self.journal.done for shard in shards):
            for layer in range(self._first_layer(), self.plan.config.layers):
                self._write_layer(layer, shards[layer + 1])
                finished()
        if shards[-1].file not in self.journal.done:
            self._write_head()
            finished()
        for states in self.journal.path.parent.glob("states-*.npy"):
            states.unlink()

    def _first_layer(self) -> int:
        """Return the first layer whose states are there; before the very first one they are made."""
        layers = self.plan.shards[1:-2]
        done = 0
        while done < len(layers) and layers[done].file in self.journal.done:
            done += 1
        for layer in range(done, -1, -1):
            if self._states_file(layer).name in self.journal.done:
                return layer
        embedded = FloatModel(self.checkpoint).embed(self.tokens())
        self._save(0, np.stack([embedded] * _paths(self.plan.quantization.method), axis=1))
        return 0

    def _write_layer(self, number: int, shard: Shard) -> None:
        """Quantise one layer; its file is written once the states behind it are safe."""
        states = np.load(self._states_file(number))
        layer = self._quantize_layer(number, states)
        self._save(number + 1, states)
        self._write_shard(shard, layer)
        self._states_file(number).unlink()

    def _write_head(self) -> None:
        """Quantise the head for the states behind the last layer."""
        states = np.load(self._states_file(self.plan.config.layers))
        head = quantize_head(self.checkpoint, self.plan.quantization, states, self.pool)
        self._write_shard(self.plan.shards[-1], head)

    def _quantize_layer(self, number: int, states: NDArray[np.float32]) -> QuantizedLayer:
        """Quantise one layer; ``states`` become those behind it."""
        quantization = self.plan.quantization
        if quantization.method == "scale":
            return scale_layer(self.checkpoint, quantization, number, states[:, 0], self.pool)
        scratch = self.journal.path.with_name(_SCRATCH)
        return CalibratedLayer(self.checkpoint, quantization, number, scratch=scratch, pool=self.pool).run(
            states
        )

    def _write_shard(self, shard: Shard, layer: QuantizedLayer) -> None:
        folder = self.journal.path.parent
        self.journal.add(write_shard(self.checkpoint, self.plan, shard, folder, layer=layer))

    def _save(self, layer: int, states: NDArray[np.float32]) -> None:
        """Keep the states before a layer for the next run."""
        path = self._states_file(layer)
        with whole_file(path) as part, part.open("wb") as file:
            np.save(file, states)
        self.journal.add(path)

    def _states_file(self, layer: int) -> Path:
        return self.journal.path.with_name(f"states-{layer:05d}.npy")


def _paths(method: Method) -> int:
    """Return how many models' states go along: for gptq the quantised one's too."""
    return 2 if method == "gptq" else 1
