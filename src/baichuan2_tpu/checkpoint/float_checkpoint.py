"""Float weights in Llama layout from any checkpoint: W_pack split, NormHead folded, a tied head repeated.

What another tool quantised is dequantised on the way, and its integers can be read as they are.
Not here: file formats, quantising. Names are those of ``weights``: Llama names without ``.weight``.
Source: ``modeling_baichuan.py`` of Baichuan2-7B (``W_pack``, ``NormHead``).
"""

from __future__ import annotations

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from baichuan2_tpu.checkpoint.adapter import Adapter
from baichuan2_tpu.checkpoint.extras import leave_out_extras
from baichuan2_tpu.checkpoint.foreign.find_form import find_form
from baichuan2_tpu.checkpoint.foreign.grouped import GroupedRows, is_in_groups
from baichuan2_tpu.checkpoint.foreign.stored_form import StoredForm, describe_form
from baichuan2_tpu.checkpoint.foreign.unpacked_source import UnpackedSource
from baichuan2_tpu.checkpoint.formats.gguf_file import GgufFile
from baichuan2_tpu.checkpoint.formats.gguf_tokenizer import check_tokenizer, write_tokenizer
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.layout import (
    EMBEDDING,
    HEAD,
    PACKED_QKV,
    QKV,
    check_tensors,
    layer_linears,
    llama_shapes,
    official_shapes,
    pad_vocabulary,
)
from baichuan2_tpu.checkpoint.prefixes import PlainNames, strip_prefixes
from baichuan2_tpu.checkpoint.source import TensorSource
from baichuan2_tpu.checkpoint.weight_files import open_weights
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = ["FloatCheckpoint"]

_NORM_FLOOR = 1e-12  # of torch.nn.functional.normalize
_NORM_ROWS = 4096
_FLOATS = ("BF16", "F16", "F32", "F64")
_MERGED = "adapters are merged into its weights"
_TWICE_QUANTIZED = (
    "it is quantised a second time, which loses more than quantising the original checkpoint: "
    "measure it with baichuan2 evaluate"
)


class FloatCheckpoint:
    """The float weights of one model; names, shapes and types are checked when it is opened.

    Raises: CheckpointError naming the file and the tensor.
    """

    def __init__(  # noqa: PLR0913 - all but three are optional and go by name
        self,
        path: Path,
        config: ModelConfig,
        source: TensorSource,
        metadata: Mapping[str, Any] | None = None,
        *,
        leftovers: frozenset[str] = frozenset(),
        notices: Sequence[str] = (),
        adapters: Sequence[Adapter] = (),
    ) -> None:
        self.path = path
        if f"{HEAD}.weight" in source.tensors:  # a head that is stored counts, whatever is said of tying
            config = replace(config, is_head_tied=False)
        self.metadata = metadata
        """What a GGUF file says besides its tensors, its tokenizer above all; None for a directory."""
        self.adapters = adapters
        self.notices = [*notices, *(adapter.describe() for adapter in adapters)]
        """What whoever quantises it should know."""
        self._source = source
        self._is_official = any(f".{PACKED_QKV}." in name for name in source.tensors)
        shapes = official_shapes(config) if self._is_official else llama_shapes(config)
        check_tensors(path, leave_out_extras(source, shapes, leftovers), shapes)
        self.config = replace(config, vocabulary_size=pad_vocabulary(config.vocabulary_size))
        self.stored = self._describe_stored()
        """The settings that keep the integers of another tool; None for floats."""

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
        config = replace(ModelConfig.read(path / "config.json"), quantization=None)
        files = open_weights(path)
        source: TensorSource = files
        if any(strip_prefixes(name) != name for name in files.tensors):
            source = PlainNames(files)
        form = find_form(path, source)
        if form is not None:
            source = UnpackedSource(source, form)
        _check_dtypes(source)
        opened = [Adapter(adapter, config) for adapter in adapters]
        leftovers = frozenset(map(strip_prefixes, files.unlisted))
        return cls(path, config, source, leftovers=leftovers, adapters=opened)

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
        padding = self._padding_rows(name)
        start, stop, _ = slice(start, stop).indices(rows + padding)
        ends = (first + min(start, rows), first + min(stop, rows))
        values = np.ascontiguousarray(self._source.read(stored, *ends), np.float32)
        for adapter in self.adapters:
            values = adapter.merge(name, min(start, rows), values)
        if self._is_normalized(name):
            values = values / _row_norms(values)
        missing = max(0, stop - start) - values.shape[0]
        return np.pad(values, ((0, missing), (0, 0))) if missing else values

    def read_grouped(self, name: str, *, bits: int, group_size: int) -> GroupedRows | None:
        """Return a linear's integers where ``bits`` and consecutive groups of ``group_size`` can keep them.

        The norms of a head that asks for it are folded into its scales. None for floats, for integers of
        another kind, and where adapters are merged.
        Side effect: as ``read``.
        """
        if not isinstance(self._source, UnpackedSource) or self.adapters:
            return None
        stored, first, rows = self._place(name)
        place = self._source.place(stored)
        if place is None or place.groups is None or place.bits > bits:
            return None
        if not is_in_groups(place.groups, group_size):
            return None
        grouped = self._source.read_grouped(stored, first, first + rows)
        if grouped is not None and self._is_normalized(name):
            starts = range(0, rows, _NORM_ROWS)
            norms = [_row_norms(grouped.rows(start, start + _NORM_ROWS).dequantize()) for start in starts]
            grouped = grouped.scale_rows(np.float32(1) / np.concatenate(norms))
        return None if grouped is None else grouped.pad(self._padding_rows(name))

    def describe(self, name: str) -> str:
        """Name the file and the tensor that ``name`` is read from, for messages."""
        stored = self._place(name)[0]
        merged = "".join(f" and {adapter.path}" for adapter in self.adapters)
        return f"{self._source.tensors[stored].file}{merged}: tensor {quote(stored)}"

    def release(self, name: str) -> None:
        """Give the pages behind ``name`` back, and those it shares a tensor with."""
        self._source.release(self._place(name)[0])

    def _padding_rows(self, name: str) -> int:
        """Return how many rows of zeros make the vocabulary a multiple of what a packed layer needs."""
        if name not in (EMBEDDING, HEAD):
            return 0
        return self.config.vocabulary_size - self._place(name)[2]

    def _is_normalized(self, name: str) -> bool:
        return name == HEAD and self.config.is_head_normalized

    def _describe_stored(self) -> StoredForm | None:
        if not isinstance(self._source, UnpackedSource):
            return None
        names = [name for layer in range(self.config.layers) for name in layer_linears(self.config, layer)]
        places = [self._source.place(self._place(name)[0]) for name in [*names, HEAD]]
        form = describe_form(self._source.title, places[:-1], places[-1])
        return replace(form, reason=form.reason or _MERGED) if self.adapters else form

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


def _row_norms(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what the rows of a head are divided by, in float32, as the official code does it once.

    Shapes: (N, K) → (N, 1).
    """
    norms = np.sqrt(np.square(values).sum(axis=1, keepdims=True))
    return np.maximum(norms, np.float32(_NORM_FLOOR))


def _check_dtypes(source: TensorSource) -> None:
    """Check that every weight is a float."""
    for name, info in source.tensors.items():
        if info.dtype not in _FLOATS:
            raise CheckpointError(
                f"{info.file}: tensor {quote(name)} is {info.dtype}, allowed is {', '.join(_FLOATS)}"
            )
