"""Random quantised weights of any dimensions, made in memory one tensor at a time.

They let anyone measure speed without a checkpoint. Not here: the official dimensions (``shapes``).
"""

from __future__ import annotations

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.layout import EMBEDDING, linear_bits, quantized_shapes
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import RequestError

__all__ = ["RandomWeights"]

# A real matrix of these models has about this deviation; with it activations keep their size.
_WEIGHT_DEVIATION = 0.02

# At most 64 MiB of random words: every matrix of a 7B block is a view of a part of it, so that the load
# time measured is the engine's own.
_MOST_POOL_WORDS = 1 << 24
_ALIGNMENT_WORDS = 16
_EMBEDDING_BLOCK_ROWS = 4096


class RandomWeights:
    """Weights of ``config`` filled with random integers: ``checkpoint.weights.Weights`` without a file.

    Weights are uniform around zero with the deviation of a real checkpoint; norms are ones. The same
    seed gives the same tensors, in whatever order they are asked for. Only the embedding is kept; it is
    made at once, as a file's would lie ready, so that it does not count as time to load.
    """

    def __init__(self, config: ModelConfig, *, seed: int = 0) -> None:
        if config.quantization is None:
            raise RequestError(
                "random weights need a quantisation; make the shape with shape_config(name, bits)"
            )
        self._config = config
        self._shapes = quantized_shapes(config)
        self._group_size = config.quantization.group_size
        generator = np.random.default_rng(seed)
        words = np.iinfo(np.int32)
        pool = min(2 * max(math.prod(shape) for shape in self._shapes.values()), _MOST_POOL_WORDS)
        self._words = generator.integers(words.min, words.max, pool, np.int32, endpoint=True)
        self._words.flags.writeable = False
        self._seed = seed
        self._embedding: NDArray[np.float16] | None = self._make_embedding()

    @property
    def config(self) -> ModelConfig:
        """Dimensions, with the quantisation they were asked for."""
        return self._config

    def linear(self, name: str) -> PackedLinear:
        """Make one linear layer.

        Raises: KeyError for a name that no layer of this shape has.
        """
        bits = linear_bits(self._config, name)
        return PackedLinear(
            qweight=self._draw(f"{name}.qweight"),
            qzeros=_make_zeros(self._draw(f"{name}.qzeros"), bits),
            scales=_make_scales(self._draw(f"{name}.scales"), bits),
            bits=bits,
            group_size=self._group_size,
        )

    def array(self, name: str) -> NDArray[Any]:
        """Make the embedding, or a norm of ones.

        Raises: KeyError for a name that this shape does not have.
        """
        if name != EMBEDDING:
            return np.ones(self._shapes[f"{name}.weight"], np.float32)
        if self._embedding is None:
            self._embedding = self._make_embedding()
        return self._embedding

    def release(self, name: str) -> None:
        """Forget the embedding; nothing else is kept."""
        if name == EMBEDDING:
            self._embedding = None

    def _draw(self, name: str) -> NDArray[np.int32]:
        """Return random words in the shape of a tensor: a view of the pool, or its repetition."""
        shape = self._shapes[name]
        count, pool = math.prod(shape), self._words.size
        if count > pool:
            return np.resize(self._words, shape)
        start = zlib.crc32(name.encode()) % (pool - count + 1)
        start -= start % _ALIGNMENT_WORDS
        return self._words[start : start + count].reshape(shape)

    def _make_embedding(self) -> NDArray[np.float16]:
        """Make normal values, of which one block of rows is repeated down the vocabulary."""
        rows, columns = self._shapes[f"{EMBEDDING}.weight"]
        generator = np.random.default_rng(self._seed + 1)
        block = generator.standard_normal((min(rows, _EMBEDDING_BLOCK_ROWS), columns), np.float32)
        return np.resize((block * _WEIGHT_DEVIATION).astype(np.float16), (rows, columns))


def _make_zeros(words: NDArray[np.int32], bits: int) -> NDArray[np.int32]:
    """Turn random words into packed zeros that are one of the two middle values, stored minus one."""
    middle = (1 << (bits - 1)) - 2
    lowest_bits = sum(1 << shift for shift in range(0, 32, bits))
    zeros = (words.view(np.uint32) & np.uint32(lowest_bits)) + np.uint32(middle * lowest_bits)
    return zeros.view(np.int32)


def _make_scales(words: NDArray[np.int32], bits: int) -> NDArray[np.float16]:
    """Turn random words into scales within a quarter of what gives the wanted deviation."""
    levels = 1 << bits
    deviation_of_integers = float(np.sqrt((levels**2 - 1) / 12))
    typical = _WEIGHT_DEVIATION / deviation_of_integers
    return (typical * (1 + words.astype(np.float32) / 2**33)).astype(np.float16)
