"""Float weights in Llama layout from any checkpoint: W_pack split, NormHead folded, a tied head repeated.

Not here: file formats, quantising. Names are those of ``weights``: Llama names without ``.weight``.
Source: ``modeling_baichuan.py`` of Baichuan2-7B (``W_pack``, ``NormHead``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from baichuan2_tpu.checkpoint.adapter import Adapter
from baichuan2_tpu.checkpoint.formats.gguf_file import GgufFile
from baichuan2_tpu.checkpoint.formats.gguf_tokenizer import check_tokenizer, write_tokenizer
from baichuan2_tpu.checkpoint.formats.safetensors_file import SafetensorsFile
from baichuan2_tpu.checkpoint.formats.torch_file import TorchFile
from baichuan2_tpu.checkpoint.identify import BIN_NAME, SAFETENSORS_NAME, has_weights, identify
from baichuan2_tpu.checkpoint.layout import (
    EMBEDDING,
    HEAD,
    PACKED_QKV,
    QKV,
    check_tensors,
    llama_shapes,
    official_shapes,
)
from baichuan2_tpu.checkpoint.shards import ShardedSource
from baichuan2_tpu.checkpoint.source import TensorSource
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = ["FloatCheckpoint"]

_NORM_FLOOR = 1e-12  # of torch.nn.functional.normalize
_FLOATS = ("BF16", "F16", "F32", "F64")
_TWICE_QUANTIZED = (
    "it is quantised a second time, which loses more than quantising the original checkpoint: "
    "measure it with baichuan2 evaluate"
)


class FloatCheckpoint:
    """The float weights of one model; names, shapes and types are checked when it is opened.

    Raises: CheckpointError naming the file and the tensor.
    """

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        source: TensorSource,
        metadata: Mapping[str, Any] | None = None,
        *,
        notices: Sequence[str] = (),
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.path = path
        self.config = config
        self.metadata = metadata
        """What a GGUF file says besides its tensors, its tokenizer above all; None for a directory."""
        self.adapters = adapters
        self.notices = [*notices, *(adapter.describe() for adapter in adapters)]
        """What whoever quantises it should know."""
        self._source = source
        self._is_official = any(f".{PACKED_QKV}." in name for name in source.tensors)
        shapes = official_shapes(config) if self._is_official else llama_shapes(config)
        check_tensors(path, source.tensors, shapes)

    @classmethod
    def open(cls, path: Path, adapters: Sequence[Path] = ()) -> Self:
        """Open a directory (safetensors before ``.bin``) or a GGUF file, with LoRA adapters merged in order.

        Raises: CheckpointError, also for a checkpoint that is quantised already.
        """
        located = identify(path)
        if located.kind == "gguf":
            return cls._open_gguf(located.path, adapters)
        if located.kind in ("quantized", "bundle", "bmodel"):
            raise CheckpointError(f"{path}: is quantised already; name the float checkpoint it was made from")
        config = ModelConfig.read(path / "config.json")
        if has_weights(path, SAFETENSORS_NAME):
            source = ShardedSource(path, SAFETENSORS_NAME, SafetensorsFile)
        else:
            source = ShardedSource(path, BIN_NAME, TorchFile)
        _check_dtypes(source)
        return cls(path, config, source, adapters=[Adapter(adapter, config) for adapter in adapters])

    @classmethod
    def _open_gguf(cls, path: Path, adapters: Sequence[Path]) -> Self:
        gguf = GgufFile(path)
        quantization = gguf.describe_quantization()
        notices = [] if quantization is None else [f"{quantization}; {_TWICE_QUANTIZED}"]
        opened = [Adapter(adapter, gguf.config) for adapter in adapters]
        return cls(path, gguf.config, gguf, gguf.metadata, notices=notices, adapters=opened)

    @contextmanager
    def tokenizer_files(self) -> Generator[Path, None, None]:
        """Give the folder that the tokenizer can be read from; a GGUF's is written out for as long.

        Raises: CheckpointError for the tokenizer of a GGUF that cannot be written.
        """
        if self.metadata is None:
            yield self.path
            return
        check_tokenizer(self.path, self.metadata)
        with tempfile.TemporaryDirectory(prefix="baichuan2-tokenizer-") as folder:
            write_tokenizer(self.metadata, Path(folder))
            yield Path(folder)

    @property
    def files(self) -> tuple[Path, ...]:
        """The files with weights, in the order of their names."""
        return tuple(sorted({info.file for info in self._source.tensors.values()}))

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Return rows ``start`` to ``stop`` of a tensor, in float32; a head that asks for it is normalised.

        Side effect: the pages read stay in memory until ``release(name)``.
        """
        stored, first, rows = self._place(name)
        start, stop, _ = slice(start, stop).indices(rows)
        values = np.ascontiguousarray(self._source.read(stored, first + start, first + stop), np.float32)
        for adapter in self.adapters:
            values = adapter.merge(name, start, values)
        if name == HEAD and self.config.is_head_normalized:
            # In float32, as the official code does it once before its first forward.
            norms = np.sqrt(np.square(values).sum(axis=1, keepdims=True))
            values = values / np.maximum(norms, np.float32(_NORM_FLOOR))
        return values

    def describe(self, name: str) -> str:
        """Name the file and the tensor that ``name`` is read from, for messages."""
        stored = self._place(name)[0]
        merged = "".join(f" and {adapter.path}" for adapter in self.adapters)
        return f"{self._source.tensors[stored].file}{merged}: tensor {quote(stored)}"

    def release(self, name: str) -> None:
        """Give the pages behind ``name`` back, and those it shares a tensor with."""
        self._source.release(self._place(name)[0])

    def _place(self, name: str) -> tuple[str, int, int]:
        """Return the stored tensor that holds ``name``, and at which row it begins and how many it has."""
        if name == HEAD and self.config.is_head_tied:
            name = EMBEDDING
        part = next((part for part in QKV if name.endswith(part)), None)
        if self._is_official and part is not None:
            queries = self.config.heads * self.config.head_size
            keys = self.config.kv_heads * self.config.head_size
            first, rows = ((0, queries), (queries, keys), (queries + keys, keys))[QKV.index(part)]
            return f"{name.removesuffix(part)}{PACKED_QKV}.weight", first, rows
        return f"{name}.weight", 0, self._source.tensors[f"{name}.weight"].shape[0]


def _check_dtypes(source: TensorSource) -> None:
    """Check that every weight is a float."""
    for name, info in source.tensors.items():
        if info.dtype not in _FLOATS:
            raise CheckpointError(
                f"{info.file}: tensor {quote(name)} is {info.dtype}, allowed is {', '.join(_FLOATS)}"
            )
