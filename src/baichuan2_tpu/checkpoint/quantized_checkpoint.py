"""Open a quantised checkpoint: a directory of safetensors in GPTQ form, ours or another tool's.

Not here: making one (``quantize``). Nothing is copied at opening: arrays are views of the mapped files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from baichuan2_tpu.checkpoint.layout import (
    HEAD,
    Shapes,
    check_tensors,
    layer_linears,
    linear_bits,
    quantized_shapes,
)
from baichuan2_tpu.checkpoint.shards import ShardedSource
from baichuan2_tpu.checkpoint.weight_files import open_weights
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = ["QuantizedCheckpoint"]

_INTEGER_PARTS = ("qweight", "qzeros")
_FLOATS = ("BF16", "F16", "F32")


class QuantizedCheckpoint:
    """The quantised weights in one directory; see ``Weights``.

    Raises: CheckpointError when a file is missing or wrong, naming the file and the tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = ModelConfig.read(path / "config.json")
        if self.config.quantization is None:
            raise CheckpointError(
                f"{path}: is not quantised in the form that engines read; "
                "first run baichuan2 quantize SRC DST"
            )
        self._quantization: QuantizationConfig = self.config.quantization
        self._source = open_weights(path)
        needed, indices = quantized_shapes(self.config), _index_shapes(self.config)
        check_tensors(path, self._source.tensors, needed, indices)
        _check_dtypes(self._source)
        for name in indices.keys() & self._source.tensors.keys():
            self._check_order(name)

    @property
    def files(self) -> list[Path]:
        """Every file that the weights depend on."""
        return [self.path / "config.json", *self._source.paths]

    def linear(self, name: str) -> PackedLinear:
        """Return one linear layer; its arrays are views that last until ``release(name)``."""
        return PackedLinear(
            qweight=self._source.read(f"{name}.qweight"),
            qzeros=self._source.read(f"{name}.qzeros"),
            scales=self._source.read(f"{name}.scales").astype(np.float16, copy=False),
            bits=linear_bits(self.config, name),
            group_size=self._quantization.group_size,
        )

    def array(self, name: str) -> NDArray[Any]:
        """Return one plain array: the embedding (V, E) float16, or a norm (E,) float32."""
        values = self._source.read(f"{name}.weight")
        return values.astype(np.float32 if values.ndim == 1 else np.float16, copy=False)

    def release(self, name: str) -> None:
        """Give the pages behind ``name`` back; they can be read again."""
        for part in ("weight", "qweight", "qzeros", "scales"):
            if f"{name}.{part}" in self._source.tensors:
                self._source.release(f"{name}.{part}")

    def close(self) -> None:
        """Unmap the files once no view is left."""
        self._source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_order(self, name: str) -> None:
        """Check that a g_idx assigns columns to groups in order: another order needs desc_act."""
        indices = self._source.read(name)
        if (indices != np.arange(indices.size) // self._quantization.group_size).any():
            raise CheckpointError(
                f"{self._source.tensors[name].file}: tensor {quote(name)} reorders the columns (desc_act), "
                "which is not supported; quantise the float checkpoint: baichuan2 quantize SRC DST"
            )


def _index_shapes(config: ModelConfig) -> Shapes:
    """Return the g_idx tensors, which say the group of every column and may be left out."""
    shapes: Shapes = {f"{HEAD}.g_idx": (config.hidden_size,)}
    for layer in range(config.layers):
        shapes |= {f"{name}.g_idx": (inputs,) for name, (_, inputs) in layer_linears(config, layer).items()}
    return shapes


def _check_dtypes(source: ShardedSource) -> None:
    """Check that packed integers are 32 bits wide and everything else is a float."""
    for name, info in source.tensors.items():
        is_integer = name.rpartition(".")[2] in (*_INTEGER_PARTS, "g_idx")
        allowed = ("I32",) if is_integer else _FLOATS
        if info.dtype not in allowed:
            raise CheckpointError(
                f"{info.file}: tensor {quote(name)} is {info.dtype}, allowed is {' or '.join(allowed)}; "
                "fetch the checkpoint again"
            )
