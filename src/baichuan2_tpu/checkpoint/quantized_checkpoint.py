"""Open a quantised checkpoint: a directory of safetensors in GPTQ form, ours or another tool's.

Not here: making one (``quantize``). Nothing is copied at opening: arrays are views of the mapped files.
Both forms are read (``QuantizationConfig.form``); ``quantize`` writes the second.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from baichuan2_tpu.checkpoint.formats.safetensors_file import SafetensorsFile
from baichuan2_tpu.checkpoint.layout import (
    HEAD,
    QUANTIZED_HEAD_FILE,
    Shapes,
    check_tensors,
    float_head_shapes,
    layer_linears,
    linear_bits,
    quantized_head_shapes,
    quantized_shapes,
)
from baichuan2_tpu.checkpoint.packing import shift_zeros
from baichuan2_tpu.checkpoint.shards import ShardedSource
from baichuan2_tpu.checkpoint.weight_files import open_weights
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = ["QuantizedCheckpoint"]

_Tensors = ShardedSource | SafetensorsFile

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
        self._head: _Tensors = self._source
        needed, indices = quantized_shapes(self.config), _index_shapes(self.config)
        if self._quantization.form == 2:
            self._head = _open_head(path / QUANTIZED_HEAD_FILE)
            head = quantized_head_shapes(self.config)
            _check(path, self._head, head, indices)
            needed = {name: needed[name] for name in needed.keys() - head} | float_head_shapes(self.config)
        _check(path, self._source, needed, indices)
        for source in (self._source, self._head):
            for name in indices.keys() & source.tensors.keys():
                _check_order(source, name, self._quantization.group_size)

    @property
    def files(self) -> list[Path]:
        """Every file that the weights depend on."""
        head = [] if self._head is self._source else [self.path / QUANTIZED_HEAD_FILE]
        return [self.path / "config.json", *self._source.paths, *head]

    def linear(self, name: str) -> PackedLinear:
        """Return one linear layer; its large arrays are views that last until ``release(name)``."""
        source = self._source_of(name)
        bits, zeros = linear_bits(self.config, name), source.read(f"{name}.qzeros")
        return PackedLinear(
            qweight=source.read(f"{name}.qweight"),
            qzeros=zeros if self._quantization.form == 1 else shift_zeros(zeros, bits, -1),
            scales=source.read(f"{name}.scales").astype(np.float16, copy=False),
            bits=bits,
            group_size=self._quantization.group_size,
        )

    def array(self, name: str) -> NDArray[Any]:
        """Return one plain array: the embedding (V, E) float16, or a norm (E,) float32."""
        values = self._source.read(f"{name}.weight")
        return values.astype(np.float32 if values.ndim == 1 else np.float16, copy=False)

    def release(self, name: str) -> None:
        """Give the pages behind ``name`` back; they can be read again."""
        source = self._source_of(name)
        for part in ("weight", "qweight", "qzeros", "scales"):
            if f"{name}.{part}" in source.tensors:
                source.release(f"{name}.{part}")

    def close(self) -> None:
        """Unmap the files once no view is left."""
        self._source.close()
        self._head.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _source_of(self, name: str) -> _Tensors:
        return self._head if name == HEAD else self._source


def _open_head(path: Path) -> SafetensorsFile:
    """Open the file of the quantised head."""
    if not path.is_file():
        raise CheckpointError(
            f"{path.parent}: has no {path.name}, the output head that this program uses; copy it from where "
            "the checkpoint was made, or quantise the float checkpoint: baichuan2 quantize SRC DST"
        )
    return SafetensorsFile(path)


def _check(path: Path, source: _Tensors, needed: Shapes, optional: Shapes) -> None:
    """Check names, shapes and types."""
    check_tensors(path, source.tensors, needed, optional)
    _check_dtypes(source)


def _check_order(source: _Tensors, name: str, group_size: int) -> None:
    """Check that a g_idx assigns columns to groups in order: another order needs desc_act."""
    indices = source.read(name)
    if (indices != np.arange(indices.size) // group_size).any():
        raise CheckpointError(
            f"{source.tensors[name].file}: tensor {quote(name)} reorders the columns (desc_act), "
            "which is not supported; quantise the float checkpoint: baichuan2 quantize SRC DST"
        )


def _index_shapes(config: ModelConfig) -> Shapes:
    """Return the g_idx tensors, which say the group of every column and may be left out."""
    shapes: Shapes = {f"{HEAD}.g_idx": (config.hidden_size,)}
    for layer in range(config.layers):
        shapes |= {f"{name}.g_idx": (inputs,) for name, (_, inputs) in layer_linears(config, layer).items()}
    return shapes


def _check_dtypes(source: _Tensors) -> None:
    """Check that packed integers are 32 bits wide and everything else is a float."""
    for name, info in source.tensors.items():
        is_integer = name.rpartition(".")[2] in (*_INTEGER_PARTS, "g_idx")
        allowed = ("I32",) if is_integer else _FLOATS
        if info.dtype not in allowed:
            raise CheckpointError(
                f"{info.file}: tensor {quote(name)} is {info.dtype}, allowed is {' or '.join(allowed)}; "
                "fetch the checkpoint again"
            )
