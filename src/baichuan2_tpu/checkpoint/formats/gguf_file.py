"""Read a GGUF file of the llama architecture as a float checkpoint in Llama layout.

Not here: its tokenizer (``gguf_tokenizer``). The ``gguf`` library parses and dequantises.
Source: ``convert_hf_to_gguf.py`` of llama.cpp for names and for the order of the rows of q and k.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor, quants
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.formats.gguf_header import check_header
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
from baichuan2_tpu.config import ModelConfig
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


class GgufFile:
    """The tensors of one file under their Llama names, and its metadata; see ``TensorSource``.

    Raises: CheckpointError naming the file when it is damaged, or of another architecture than llama.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        check_header(path)
        self._reader, self.metadata = _open(path)
        self._by_name = {_llama_name(tensor.name): tensor for tensor in self._reader.tensors}
        self.config = _read_config(path, self.metadata, has_head=f"{HEAD}.weight" in self._by_name)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Everything the file holds; GGUF counts dimensions from the innermost."""
        return {
            name: TensorInfo(
                tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name, self.path
            )
            for name, tensor in self._by_name.items()
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Return rows of one tensor as float32, q and k in the order of Hugging Face."""
        tensor = self._by_name[name]
        heads = {"q_proj": self.config.heads, "k_proj": self.config.kv_heads}.get(name.split(".")[-2])
        if heads is None:
            return self._dequantize(tensor, tensor.data[start:stop])
        return _unpermute(self._dequantize(tensor, tensor.data), heads)[start:stop]

    def release(self, name: str) -> None:
        """Give the tensor's pages back."""
        tensor = self._by_name[name]
        start = tensor.data_offset - tensor.data_offset % mmap.PAGESIZE
        if isinstance(self._reader.data.base, mmap.mmap):
            self._reader.data.base.madvise(
                mmap.MADV_DONTNEED, start, tensor.data_offset + tensor.n_bytes - start
            )

    def _dequantize(self, tensor: ReaderTensor, data: NDArray[Any]) -> NDArray[np.float32]:
        try:
            # Before numpy 2.3 the arrays in gguf's signatures are of unknown type.
            values: NDArray[Any] = quants.dequantize(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
                data, tensor.tensor_type
            )
            return values.astype(np.float32, copy=False)
        except NotImplementedError as error:
            raise CheckpointError(
                f"{self.path}: tensor {quote(tensor.name)} is {tensor.tensor_type.name}, which the gguf "
                "library cannot dequantise; convert the model to another type, such as Q8_0"
            ) from error


def _open(path: Path) -> tuple[GGUFReader, dict[str, Any]]:
    """Open the file with the library, whose complaints are of many kinds, and return its metadata too."""
    try:
        reader = GGUFReader(path)
        return reader, {
            key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")
        }
    except (OSError, ValueError, LookupError, TypeError, OverflowError, MemoryError) as error:
        raise CheckpointError(
            f"{path}: is not a readable GGUF file ({shorten(str(error))}); "
            "it is truncated or damaged, fetch it again"
        ) from error


def _llama_name(name: str) -> str:
    """Translate a tensor name; one that is not known stays as it is, for the layout check to refuse."""
    parts = name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"{layer_prefix(parts[1])}{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    return _PLAIN_NAMES.get(name, name)


def _read_config(path: Path, metadata: Mapping[str, Any], *, has_head: bool) -> ModelConfig:
    """Translate the metadata to the keys of a config.json, where all checks are."""
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise CheckpointError(
            f"{path}: general.architecture is {quote(str(architecture))}, allowed is 'llama'"
        )
    scaling = metadata.get("llama.rope.scaling.type")
    values: dict[str, object] = {
        "model_type": "llama",
        "hidden_size": metadata.get("llama.embedding_length"),
        "intermediate_size": metadata.get("llama.feed_forward_length"),
        "num_hidden_layers": metadata.get("llama.block_count"),
        "num_attention_heads": metadata.get("llama.attention.head_count"),
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv"),
        "head_dim": metadata.get("llama.attention.key_length", metadata.get("llama.rope.dimension_count")),
        "vocab_size": metadata.get("llama.vocab_size", len(metadata.get("tokenizer.ggml.tokens", ()))),
        "rms_norm_eps": metadata.get("llama.attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.get("llama.rope.freq_base", 10_000.0),
        "rope_scaling": None if scaling == "none" else scaling,
        "max_position_embeddings": metadata.get("llama.context_length"),
        "tie_word_embeddings": not has_head,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }
    return ModelConfig.from_json(values, file=f"{path} (metadata)")


def _unpermute(weights: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Put a head's rows from ggml's interleaved halves (0, D/2, 1, …) back into order (0, 1, …)."""
    rows, columns = weights.shape
    pairs = weights.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, columns)
