"""Read a GGUF model of the llama or baichuan architecture as a float checkpoint in Llama layout.

The ``gguf`` library parses and dequantises.
Not here: the model's dimensions (``gguf_config``), its tokenizer (``gguf_tokenizer``).
Source: ``convert_hf_to_gguf.py`` of llama.cpp for names and for the order of the rows of q and k.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, ReaderTensor, quants
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.formats.gguf_config import describe_origin, read_gguf_config
from baichuan2_tpu.checkpoint.formats.gguf_header import check_header
from baichuan2_tpu.checkpoint.gguf_parts import list_parts
from baichuan2_tpu.checkpoint.layout import (
    ATTENTION_NORM,
    ATTENTION_OUTPUT,
    DOWN,
    EMBEDDING,
    FINAL_NORM,
    GATE,
    HEAD,
    MLP_NORM,
    QKV,
    UP,
    layer_prefix,
)
from baichuan2_tpu.checkpoint.source import TensorInfo
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote, shorten

__all__ = ["GgufFile"]

_PLAIN_NAMES = {
    "token_embd.weight": f"{EMBEDDING}.weight",
    "output_norm.weight": f"{FINAL_NORM}.weight",
    "output.weight": f"{HEAD}.weight",
}
_LAYER_NAMES = {
    "attn_norm": ATTENTION_NORM,
    "ffn_norm": MLP_NORM,
    "attn_q": QKV[0],
    "attn_k": QKV[1],
    "attn_v": QKV[2],
    "attn_output": ATTENTION_OUTPUT,
    "ffn_gate": GATE,
    "ffn_up": UP,
    "ffn_down": DOWN,
}
_FLOATS = (GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16)


@dataclass(frozen=True, slots=True)
class _Part:
    """One file, open, and what it says besides its tensors."""

    path: Path
    reader: GGUFReader
    metadata: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Stored:
    """A tensor and the file it is in."""

    part: _Part
    tensor: ReaderTensor


class GgufFile:
    """The tensors of one model under their Llama names, and its metadata; see ``TensorSource``.

    ``path`` is its file, or any part of a split one.
    Raises: CheckpointError naming the file when it is damaged, or of another architecture.
    """

    def __init__(self, path: Path) -> None:
        parts = [_open(part) for part in list_parts(path)]
        self.path = parts[0].path
        self.metadata = parts[0].metadata
        stored = _collect(parts)
        self._by_name = {_llama_name(name): tensor for name, tensor in stored.items()}
        self.config = read_gguf_config(self.path, self.metadata, stored)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Everything the files hold; GGUF counts dimensions from the innermost."""
        return {
            name: TensorInfo(
                tuple(int(size) for size in reversed(stored.tensor.shape)),
                stored.tensor.tensor_type.name,
                stored.part.path,
            )
            for name, stored in self._by_name.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of one tensor as float32, q and k in the order of Hugging Face."""
        stored = self._by_name[name]
        data: NDArray[Any] = stored.tensor.data
        for part, heads in ((QKV[0], self.config.heads), (QKV[1], self.config.kv_heads)):
            if name.endswith(f"{part}.weight"):
                return _dequantize(stored, data[_stored_rows(data.shape[0], heads)[start:stop]])
        return _dequantize(stored, data[start:stop])

    def release(self, name: str) -> None:
        """Give the tensor's pages back."""
        tensor, content = self._by_name[name].tensor, self._by_name[name].part.reader.data.base
        start = tensor.data_offset - tensor.data_offset % mmap.PAGESIZE
        if isinstance(content, mmap.mmap):
            content.madvise(mmap.MADV_DONTNEED, start, tensor.data_offset + tensor.n_bytes - start)

    def describe_quantization(self) -> str | None:
        """Say what quantised weights the model holds and who made them; None for float weights."""
        matrices = [stored.tensor for stored in self._by_name.values() if len(stored.tensor.shape) > 1]
        kinds = sorted({tensor.tensor_type for tensor in matrices} - {*_FLOATS})
        if not kinds:
            return None
        weights = sum(int(tensor.n_elements) for tensor in matrices)
        bits = sum(int(tensor.n_bytes) for tensor in matrices) * 8 / weights
        names = ", ".join(kind.name for kind in kinds)
        return (
            f"{self.path} holds {describe_origin(self.metadata)}, already quantised "
            f"({names}; {bits:.2f} bits per weight)"
        )


def _dequantize(stored: _Stored, data: NDArray[Any]) -> NDArray[np.float32]:
    try:
        with np.errstate(all="ignore"):  # whoever uses the numbers checks them
            # Before numpy 2.3 the arrays in gguf's signatures are of unknown type.
            values: NDArray[Any] = quants.dequantize(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
                data, stored.tensor.tensor_type
            )
        return values.astype(np.float32, copy=False)
    except NotImplementedError as error:
        raise CheckpointError(
            f"{stored.part.path}: tensor {quote(stored.tensor.name)} is {stored.tensor.tensor_type.name}, "
            "which the gguf library cannot dequantise; fetch the model in another type, such as Q8_0"
        ) from error


def _open(path: Path) -> _Part:
    """Open a file with the library, whose complaints are of many kinds."""
    check_header(path)
    try:
        reader = GGUFReader(path)
        return _Part(
            path,
            reader,
            {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")},
        )
    except (OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: is not a readable GGUF file ({shorten(str(error))}); "
            "it is truncated or damaged, fetch it again"
        ) from error


def _collect(parts: list[_Part]) -> dict[str, _Stored]:
    """Return the tensors of all parts by their names in the files.

    Raises: CheckpointError when the parts do not make a model.
    """
    path, count = parts[0].path, parts[0].metadata.get("split.count", 1)
    if count not in (0, len(parts)):
        raise CheckpointError(
            f"{path}: is one of {quote(count)} parts of a model, which are called "
            f"NAME-00001-of-0000N.gguf; {len(parts)} found: give all files their names back"
        )
    stored: dict[str, _Stored] = {}
    for part in parts:
        for tensor in part.reader.tensors:
            if tensor.name in stored:
                other = stored[tensor.name].part.path
                raise CheckpointError(
                    f"{part.path}: tensor {quote(tensor.name)} is in {other} too; fetch all parts again"
                )
            stored[tensor.name] = _Stored(part, tensor)
    total = parts[0].metadata.get("split.tensors.count", len(stored))
    if total != len(stored):
        raise CheckpointError(
            f"{path}: the model has {quote(total)} tensors, its {len(parts)} files hold {len(stored)}; "
            "fetch all parts again"
        )
    return stored


def _llama_name(name: str) -> str:
    """Translate a tensor name; one that is not known stays as it is, for the layout check to refuse."""
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"{layer_prefix(parts[1])}{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    return _PLAIN_NAMES.get(name, name)


def _stored_rows(rows: int, heads: int) -> NDArray[np.intp]:
    """Return the stored row of every row: ggml interleaves the halves of a head (0, D/2, 1, …)."""
    return np.ascontiguousarray(np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2)).ravel()
