"""Make a GGUF of a named shape with random weights, for llama.cpp.

The mix of formats is that of llama.cpp's own quantize: at 4 bits Q4_0 with a Q6_K head, at 8 bits Q8_0
everywhere. Source: ``llama_tensor_get_type`` and ``block_q6_K`` of llama.cpp; the ``gguf`` library.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType, TokenType
from numpy.typing import NDArray

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.shapes import SHAPES
from peers.protocol import GgufModel

__all__ = ["make_gguf"]

BLOCKS = {4: GGMLQuantizationType.Q4_0, 8: GGMLQuantizationType.Q8_0}
HEAD = {4: GGMLQuantizationType.Q6_K, 8: GGMLQuantizationType.Q8_0}
FILE_TYPE = {4: LlamaFileType.MOSTLY_Q4_0, 8: LlamaFileType.MOSTLY_Q8_0}
WEIGHT_DEVIATION = 0.02

# Quantising in Python is slow: only this many rows are made, then repeated.
ROWS_MADE = 512

Q6K_WEIGHTS = 256
Q6K_QUANT_BYTES = 192
Q6K_SCALES = 16
Q6K_SCALE_RANGE = (8, 16)

BYTE_TOKENS = 256


def make_gguf(shape: str, *, bits: int, layers: int, folder: Path) -> GgufModel:
    """Return the GGUF of ``layers`` layers of a shape; write it into ``folder`` unless it is there.

    Side effect: a file of 4 GB (7B, 4 bits) or 8 GB (8 bits).
    """
    config = SHAPES[shape]
    path = folder / f"{shape}-{layers}-layers-{BLOCKS[bits].name}-{HEAD[bits].name}.gguf".lower()
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # Renamed when complete: an interrupted run must not leave a file that looks finished.
        unfinished = path.with_suffix(".part")
        _write(unfinished, config, bits=bits, layers=layers)
        unfinished.rename(path)
    return GgufModel(
        path=str(path),
        formats=f"{BLOCKS[bits].name}, head {HEAD[bits].name}",
        block_bytes=layers
        * sum(_packed_bytes(rows, columns, BLOCKS[bits]) for _, rows, columns in _linears(config)),
        head_bytes=_packed_bytes(config.vocabulary_size, config.hidden_size, HEAD[bits]),
    )


def _linears(config: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """Yield name, rows and columns of the linears of a layer, in llama.cpp's names."""
    hidden, inner = config.hidden_size, config.intermediate_size
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        yield name, hidden, hidden
    yield "ffn_gate", inner, hidden
    yield "ffn_up", inner, hidden
    yield "ffn_down", hidden, inner


def _packed_bytes(rows: int, columns: int, kind: GGMLQuantizationType) -> int:
    block_weights, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    return rows * columns // block_weights * block_bytes


def _write(path: Path, config: ModelConfig, *, bits: int, layers: int) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    _add_dimensions(writer, config, layers)
    writer.add_file_type(FILE_TYPE[bits])
    _add_vocabulary(writer, config.vocabulary_size)
    _add_tensors(writer, config, bits=bits, layers=layers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_dimensions(writer: gguf.GGUFWriter, config: ModelConfig, layers: int) -> None:
    writer.add_context_length(config.max_context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_vocab_size(config.vocabulary_size)


def _add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Add made-up tokens: llama.cpp does not load a file without a vocabulary that has the byte tokens."""
    special = ["<unk>", "<s>", "</s>"]
    known = [*special, *(f"<0x{byte:02X}>" for byte in range(BYTE_TOKENS))]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * BYTE_TOKENS]
    made_up = size - len(known)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*known, *(f"token{number}" for number in range(made_up))])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([*kinds, *[TokenType.NORMAL] * made_up])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _add_tensors(writer: gguf.GGUFWriter, config: ModelConfig, *, bits: int, layers: int) -> None:
    """Add every tensor; layers share arrays in memory, not in the file."""
    generator = np.random.default_rng(0)
    hidden, vocabulary = config.hidden_size, config.vocabulary_size
    ones = np.ones(hidden, np.float32)

    def add(name: str, values: NDArray[Any], kind: GGMLQuantizationType) -> None:
        writer.add_tensor(f"{name}.weight", values, raw_dtype=kind)

    kind = BLOCKS[bits]
    # One array per name: the writer copies it into the file for every layer, memory holds it once.
    linears = {name: _random_rows(generator, rows, columns, kind) for name, rows, columns in _linears(config)}
    add("token_embd", _random_rows(generator, vocabulary, hidden, kind), kind)
    add("output", _random_rows(generator, vocabulary, hidden, HEAD[bits]), HEAD[bits])
    writer.add_tensor("output_norm.weight", ones)
    for layer in range(layers):
        for name, values in linears.items():
            add(f"blk.{layer}.{name}", values, kind)
        writer.add_tensor(f"blk.{layer}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{layer}.ffn_norm.weight", ones)


def _random_rows(
    generator: np.random.Generator, rows: int, columns: int, kind: GGMLQuantizationType
) -> NDArray[np.uint8]:
    """Return packed random weights. Shapes: (rows, bytes per row)."""
    made = min(rows, ROWS_MADE)
    if kind == GGMLQuantizationType.Q6_K:
        packed = _random_q6k(generator, made, columns)
    else:
        values = generator.standard_normal((made, columns), np.float32) * WEIGHT_DEVIATION
        packed = gguf.quants.quantize(values, kind)
    return np.resize(packed, (rows, packed.shape[1]))


def _random_q6k(generator: np.random.Generator, rows: int, columns: int) -> NDArray[np.uint8]:
    """Return random Q6_K blocks, which ``gguf`` reads but cannot make.

    A block is 128 bytes of low and 64 of high bits, 16 int8 scales, and a float16 that scales them.
    """
    blocks = rows * columns // Q6K_WEIGHTS
    quants = generator.integers(0, 256, (blocks, Q6K_QUANT_BYTES), np.uint8)
    scales = generator.integers(*Q6K_SCALE_RANGE, (blocks, Q6K_SCALES), np.uint8)
    deviation_of_integers = math.sqrt((64**2 - 1) / 12) * sum(Q6K_SCALE_RANGE) / 2
    factor = np.full((blocks, 1), WEIGHT_DEVIATION / deviation_of_integers, np.float16).view(np.uint8)
    return np.concatenate([quants, scales, factor], axis=1).reshape(rows, -1)
