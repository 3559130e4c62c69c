"""The tensors that a checkpoint must hold, by name and shape, and the check that it does.

Three layouts: official Baichuan (q, k and v in one ``W_pack``), Llama, and Llama with packed linears.
Every name is written here once. Not here: reading tensors (``source``).
Source: ``modeling_baichuan.py`` of Baichuan2-7B; Hugging Face's ``LlamaForCausalLM``; AutoGPTQ's
``QuantLinear``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from baichuan2_tpu.checkpoint.source import TensorInfo
from baichuan2_tpu.checkpoint.weights import WORD_BITS
from baichuan2_tpu.config import GROUP_MULTIPLE, ModelConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = [
    "ATTENTION_NORM",
    "ATTENTION_OUTPUT",
    "DOWN",
    "EMBEDDING",
    "FINAL_NORM",
    "GATE",
    "HALF_ARRAYS",
    "HEAD",
    "LAYER_LINEARS",
    "LAYER_NORMS",
    "MLP_NORM",
    "PACKED_QKV",
    "QKV",
    "QUANTIZED_HEAD_FILE",
    "UP",
    "Shape",
    "Shapes",
    "check_tensors",
    "float_head_shapes",
    "layer_linears",
    "layer_norms",
    "layer_prefix",
    "linear_bits",
    "llama_shapes",
    "official_shapes",
    "packed_shapes",
    "pad_vocabulary",
    "quantized_head_shapes",
    "quantized_shapes",
]

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

HEAD = "lm_head"
EMBEDDING = "model.embed_tokens"
FINAL_NORM = "model.norm"
QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
ATTENTION_OUTPUT = "self_attn.o_proj"
GATE, UP, DOWN = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
LAYER_LINEARS = (*QKV, ATTENTION_OUTPUT, GATE, UP, DOWN)
"""The linears of a layer, without its prefix and without ``.weight``, in the order of a forward pass."""
ATTENTION_NORM, MLP_NORM = "input_layernorm", "post_attention_layernorm"
LAYER_NORMS = (ATTENTION_NORM, MLP_NORM)
"""The norms of a layer, named like its linears."""

HALF_ARRAYS = (EMBEDDING, HEAD)
"""The plain arrays that a quantised checkpoint holds in float16; norms are float32."""

PACKED_QKV = "self_attn.W_pack"

QUANTIZED_HEAD_FILE = "quantized_head.safetensors"
"""Holds the quantised head. No index names it and no other tool knows it: they use the float head."""

_HARMLESS = (
    "rotary_emb.inv_freq"  # a buffer that old versions of transformers saved; it follows from the config
)


def pad_vocabulary(size: int) -> int:
    """Return the rows of an embedding and a head that can be packed and compiled; those added hold zeros."""
    return size + -size % GROUP_MULTIPLE


def layer_linears(config: ModelConfig, layer: int) -> dict[str, tuple[int, int]]:
    """Return the linears of one layer, without ``.weight``, and their (N, K)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    shapes: dict[str, tuple[int, int]] = dict.fromkeys(QKV, (keys, hidden)) | {
        QKV[0]: (queries, hidden),
        ATTENTION_OUTPUT: (hidden, queries),
        GATE: (inner, hidden),
        UP: (inner, hidden),
        DOWN: (hidden, inner),
    }
    return {f"{layer_prefix(layer)}{name}": shapes[name] for name in LAYER_LINEARS}


def layer_norms(layer: int) -> tuple[str, ...]:
    """Return the norms of one layer, without ``.weight``."""
    return tuple(f"{layer_prefix(layer)}{name}" for name in LAYER_NORMS)


def layer_prefix(layer: int | str) -> str:
    """Return what the names of a layer's tensors begin with."""
    return f"model.layers.{layer}."


def llama_shapes(config: ModelConfig) -> Shapes:
    """Return every tensor of a float checkpoint in Llama layout."""
    shapes = _plain_shapes(config)
    for layer in range(config.layers):
        shapes |= {f"{name}.weight": shape for name, shape in layer_linears(config, layer).items()}
    return shapes | float_head_shapes(config)


def official_shapes(config: ModelConfig) -> Shapes:
    """Return every tensor of a float checkpoint in the official Baichuan layout."""
    shapes = llama_shapes(config)
    for layer in range(config.layers):
        prefix = layer_prefix(layer)
        rows = sum(shapes.pop(f"{prefix}{name}.weight")[0] for name in QKV)
        shapes[f"{prefix}{PACKED_QKV}.weight"] = (rows, config.hidden_size)
    return shapes


def quantized_shapes(config: ModelConfig) -> Shapes:
    """Return every tensor that our engines read of a quantised checkpoint, without the optional ``g_idx``."""
    shapes = _plain_shapes(config)
    for layer in range(config.layers):
        for name, size in layer_linears(config, layer).items():
            shapes |= packed_shapes(config, name, *size)
    return shapes | quantized_head_shapes(config)


def quantized_head_shapes(config: ModelConfig) -> Shapes:
    """Return the tensors of a quantised head, without the optional ``g_idx``."""
    return packed_shapes(config, HEAD, config.vocabulary_size, config.hidden_size)


def float_head_shapes(config: ModelConfig) -> Shapes:
    """Return the float head, which is left out where the embedding is used as the head."""
    size = (config.vocabulary_size, config.hidden_size)
    return {} if config.is_head_tied else {f"{HEAD}.weight": size}


def packed_shapes(config: ModelConfig, name: str, outputs: int, inputs: int) -> Shapes:
    """Return the three tensors of one linear in GPTQ form, which packs several integers in a word.

    Raises: CheckpointError when N or K is not a multiple of what a word holds.
    """
    assert config.quantization is not None  # noqa: S101 - our own invariant
    per_word = WORD_BITS // linear_bits(config, name)
    if outputs % per_word or inputs % per_word:
        raise CheckpointError(
            f"{name} has {outputs} rows and {inputs} columns, allowed are multiples of {per_word}; "
            "this model cannot be stored in GPTQ form"
        )
    groups = -(-inputs // config.quantization.group_size)
    return {
        f"{name}.qweight": (inputs // per_word, outputs),
        f"{name}.qzeros": (groups, outputs // per_word),
        f"{name}.scales": (groups, outputs),
    }


def linear_bits(config: ModelConfig, name: str) -> int:
    """Return the bits of one linear of a quantised checkpoint."""
    assert config.quantization is not None  # noqa: S101 - our own invariant
    return config.quantization.head_bits if name == HEAD else config.quantization.bits


def check_tensors(
    where: Path, tensors: Mapping[str, TensorInfo], needed: Shapes, optional: Shapes | None = None
) -> None:
    """Check that a checkpoint holds what its config asks for, and nothing else.

    Raises: CheckpointError naming the file and the tensor that is missing, extra or misshaped.
    """
    optional = optional or {}
    for name in sorted(needed.keys() - tensors.keys()):
        raise CheckpointError(
            f"{where}: tensor {quote(name)} of shape {needed[name]} is missing; fetch the checkpoint again"
        )
    for name, info in tensors.items():
        if name.endswith(_HARMLESS):
            continue
        shape = needed.get(name, optional.get(name))
        if shape is None:
            raise CheckpointError(
                f"{info.file}: tensor {quote(name)} is not part of this model; "
                "config.json belongs to other files"
            )
        if info.shape != shape:
            # ZeRO-3 of DeepSpeed leaves empty tensors where a model is saved without gathering its weights.
            step = (
                "gather the weights of all processes and save" if 0 in info.shape else "fetch the checkpoint"
            )
            raise CheckpointError(
                f"{info.file}: tensor {quote(name)} has shape {info.shape}, config.json asks for {shape}; "
                f"{step} again"
            )


def _plain_shapes(config: ModelConfig) -> Shapes:
    """Return the embedding and the norms."""
    hidden = config.hidden_size
    norms = [norm for layer in range(config.layers) for norm in layer_norms(layer)]
    embedding: Shapes = {f"{EMBEDDING}.weight": (config.vocabulary_size, hidden)}
    return embedding | {f"{norm}.weight": (hidden,) for norm in [*norms, FINAL_NORM]}
