"""The tensors that a checkpoint must hold, by name and shape, and the check that it does.

Three layouts: official Baichuan (q, k and v in one ``W_pack``), Llama, and Llama with packed linears.
Not here: reading tensors.
Source: ``modeling_baichuan.py`` of Baichuan2-7B; Hugging Face's ``LlamaForCausalLM``; AutoGPTQ's
``QuantLinear``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from baichuan2_tpu.checkpoint.source import TensorInfo
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import CheckpointError

__all__ = [
    "HEAD",
    "Shape",
    "Shapes",
    "check_tensors",
    "layer_linears",
    "layer_norms",
    "linear_bits",
    "llama_shapes",
    "official_shapes",
    "packed_shapes",
    "quantized_shapes",
]

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

HEAD = "lm_head"
_HARMLESS = (
    "rotary_emb.inv_freq"  # a buffer that old versions of transformers saved; it follows from the config
)
_WORD_BITS = 32


def layer_linears(config: ModelConfig, layer: int) -> dict[str, tuple[int, int]]:
    """Return the linears of one layer, without ``.weight``, and their (N, K)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.heads * config.head_size, config.kv_heads * config.head_size
    prefix = f"model.layers.{layer}"
    return {
        f"{prefix}.self_attn.q_proj": (queries, hidden),
        f"{prefix}.self_attn.k_proj": (keys, hidden),
        f"{prefix}.self_attn.v_proj": (keys, hidden),
        f"{prefix}.self_attn.o_proj": (hidden, queries),
        f"{prefix}.mlp.gate_proj": (inner, hidden),
        f"{prefix}.mlp.up_proj": (inner, hidden),
        f"{prefix}.mlp.down_proj": (hidden, inner),
    }


def layer_norms(layer: int) -> tuple[str, str]:
    """Return the norms of one layer, without ``.weight``."""
    return f"model.layers.{layer}.input_layernorm", f"model.layers.{layer}.post_attention_layernorm"


def llama_shapes(config: ModelConfig) -> Shapes:
    """Return every tensor of a float checkpoint in Llama layout."""
    shapes = _plain_shapes(config)
    for layer in range(config.layers):
        shapes |= {f"{name}.weight": shape for name, shape in layer_linears(config, layer).items()}
    if not config.is_head_tied:
        shapes[f"{HEAD}.weight"] = (config.vocabulary_size, config.hidden_size)
    return shapes


def official_shapes(config: ModelConfig) -> Shapes:
    """Return every tensor of a float checkpoint in the official Baichuan layout."""
    shapes = llama_shapes(config)
    for layer in range(config.layers):
        prefix = f"model.layers.{layer}.self_attn"
        rows = sum(shapes.pop(f"{prefix}.{one}_proj.weight")[0] for one in "qkv")
        shapes[f"{prefix}.W_pack.weight"] = (rows, config.hidden_size)
    return shapes


def quantized_shapes(config: ModelConfig) -> Shapes:
    """Return every tensor of a quantised checkpoint, without the optional ``g_idx``."""
    shapes = _plain_shapes(config)
    for layer in range(config.layers):
        for name, size in layer_linears(config, layer).items():
            shapes |= packed_shapes(config, name, *size)
    return shapes | packed_shapes(config, HEAD, config.vocabulary_size, config.hidden_size)


def packed_shapes(config: ModelConfig, name: str, outputs: int, inputs: int) -> Shapes:
    """Return the three tensors of one linear in GPTQ form, which packs several integers in a word.

    Raises: CheckpointError when N or K is no multiple of what a word holds.
    """
    assert config.quantization is not None  # noqa: S101 - our own invariant
    per_word = _WORD_BITS // linear_bits(config, name)
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
            f"{where}: tensor {name!r} of shape {needed[name]} is missing; fetch the checkpoint again"
        )
    for name, info in tensors.items():
        if name.endswith(_HARMLESS):
            continue
        shape = needed.get(name, optional.get(name))
        if shape is None:
            raise CheckpointError(
                f"{info.file}: tensor {name!r} is no part of this model; config.json belongs to other files"
            )
        if info.shape != shape:
            raise CheckpointError(
                f"{info.file}: tensor {name!r} has shape {info.shape}, config.json asks for {shape}; "
                "fetch the checkpoint again"
            )


def _plain_shapes(config: ModelConfig) -> Shapes:
    """Return the embedding and the norms."""
    hidden = config.hidden_size
    norms = [norm for layer in range(config.layers) for norm in layer_norms(layer)]
    embedding: Shapes = {"model.embed_tokens.weight": (config.vocabulary_size, hidden)}
    return embedding | {f"{norm}.weight": (hidden,) for norm in [*norms, "model.norm"]}
