"""GGUF files small enough for a unit test, written with the gguf library as llama.cpp's converters do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize as quantize_blocks
from numpy.typing import NDArray
from sentencepiece import SentencePieceProcessor

from baichuan2_tpu.config import ModelConfig

__all__ = ["BPE", "Block", "gguf_name", "permute", "sentencepiece_entries", "write_gguf"]

_LAYER_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_BYTES = [*map(chr, _PRINTABLE), *(chr(0x100 + index) for index in range(256 - len(_PRINTABLE)))]
_BPE_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_BYTES, "Ġa", "ab", "12", "Ġab", "ba"]

BPE: dict[str, object] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": _BPE_TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(_BPE_TOKENS) - 3),
    "tokenizer.ggml.merges": ["Ġ a", "a b", "1 2", "Ġa b", "b a"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
}
"""The tokenizer of a file, 264 byte-level tokens, by the keys of its metadata."""


@dataclass(frozen=True)
class Block:
    """A matrix in a quantised type: the (rows, bytes) of its blocks."""

    kind: GGMLQuantizationType
    blocks: NDArray[np.uint8]


def gguf_name(name: str) -> str:
    """Return ggml's name of a tensor of the Llama layout."""
    plain = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    name = name.removesuffix(".weight")
    if name in plain:
        return f"{plain[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_LAYER_NAMES[part]}.weight"


def permute(weights: NDArray[np.generic], heads: int) -> NDArray[np.generic]:
    """Do what llama.cpp's converter does to q and k."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def sentencepiece_entries(directory: Path, size: int) -> dict[str, object]:
    """Return what the converter writes of a ``tokenizer.model``: user-defined pieces become normal ones."""
    model = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    ids = range(model.vocab_size())
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1 for i in ids
    ]
    missing = size - len(ids)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*map(model.id_to_piece, ids), *(f"[PAD{i}]" for i in range(missing))],
        "tokenizer.ggml.scores": [*map(model.get_score, ids), *[-10000.0] * missing],
        "tokenizer.ggml.token_type": [*kinds, *[5] * missing],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def write_gguf(
    path: Path,
    config: ModelConfig,
    tensors: Mapping[str, NDArray[np.float32] | Block],
    *,
    architecture: str = "llama",
    entries: Mapping[str, object] = BPE,
    kind: GGMLQuantizationType = GGMLQuantizationType.Q8_0,
    split_max_tensors: int = 0,
) -> Path:
    """Write a file, or files of at most so many tensors each; an entry of None leaves out what is usual."""
    writer = GGUFWriter(path, architecture, split_max_tensors=split_max_tensors)
    usual: dict[str, object] = {
        f"{architecture}.block_count": config.layers,
        f"{architecture}.context_length": config.max_context,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.heads,
        f"{architecture}.attention.head_count_kv": config.kv_heads,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.norm_eps,
        f"{architecture}.rope.dimension_count": config.head_size,
    }
    for key, value in (usual | dict(entries)).items():
        _add_entry(writer, key, value)
    for name, tensor in tensors.items():
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(name.split(".")[-2])
        _add_tensor(writer, gguf_name(name), tensor, heads, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_entry(writer: GGUFWriter, key: str, value: object) -> None:
    match value:
        case None:
            pass
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)
        case _:
            raise TypeError(key)


def _add_tensor(
    writer: GGUFWriter,
    name: str,
    tensor: NDArray[np.float32] | Block,
    heads: int | None,
    kind: GGMLQuantizationType,
) -> None:
    if isinstance(tensor, Block):
        blocks = tensor.blocks if heads is None else permute(tensor.blocks, heads)
        writer.add_tensor(name, np.ascontiguousarray(blocks), raw_dtype=tensor.kind)
    elif tensor.ndim == 1:
        writer.add_tensor(name, tensor)
    else:
        stored = np.ascontiguousarray(tensor if heads is None else permute(tensor, heads))
        writer.add_tensor(name, quantize_blocks(stored, kind), raw_dtype=kind)
