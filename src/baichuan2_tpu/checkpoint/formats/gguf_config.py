"""The dimensions of a GGUF model out of its metadata, and what the file says of its origin.

Not here: tensors (``gguf_file``), the tokenizer (``gguf_tokenizer``).
Source: ``conversion/baichuan.py``, ``conversion/llama.py`` and ``src/models/baichuan.cpp`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from baichuan2_tpu.config import ModelConfig, Position
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = ["describe_origin", "read_gguf_config"]

_ARCHITECTURES = ("llama", "baichuan")
_BAICHUAN_CONTEXT = 4096  # of all models of the family; converters did not always write it
_ALIBI_LAYERS = 40  # llama.cpp knows a 13B by its layers alone, and runs it with ALiBi
_BAICHUAN2_VOCABULARY = 125_696
_ADAPTER_STEP = "merge the PEFT adapter that it was made from: baichuan2 quantize SRC DST --adapter DIR"
_SENTENCEPIECE_IDS = {"bos": 1, "eos": 2}  # llama.cpp's, where a file says nothing


def describe_origin(metadata: Mapping[str, Any]) -> str:
    """Say what a file calls its model and who quantised it, as far as it says so."""
    name, maker = metadata.get("general.name"), metadata.get("general.quantized_by")
    described = f"the model {quote(name)}" if isinstance(name, str) else "a model"
    return f"{described}, quantised by {quote(maker)}" if isinstance(maker, str) else described


def read_gguf_config(path: Path, metadata: Mapping[str, Any], tensors: Collection[str]) -> ModelConfig:
    """Translate the metadata to the keys of a config.json, where all checks are.

    ``tensors`` are the names in the file: a model without ``output.weight`` repeats its embedding.
    Raises: CheckpointError saying what the file is, and what to do.
    """
    kind = metadata.get("general.type", "model")
    if kind != "model":
        step = _ADAPTER_STEP if kind == "adapter" else "name the file of the model"
        raise CheckpointError(f"{path}: is of general.type {quote(kind)}, allowed is 'model'; {step}")
    architecture = metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise _refusal(
            path,
            metadata,
            f"general.architecture is {quote(architecture)}, allowed are {' and '.join(_ARCHITECTURES)}",
        )
    _check_variant(path, metadata, tensors)
    return ModelConfig.from_json(
        _dimensions(metadata, architecture) | {"tie_word_embeddings": "output.weight" not in tensors},
        file=f"{path} (metadata)",
    )


def _check_variant(path: Path, metadata: Mapping[str, Any], tensors: Collection[str]) -> None:
    """Refuse what has the architecture's name but computes something else."""
    prefix = metadata["general.architecture"]
    experts = metadata.get(f"{prefix}.expert_count")
    if experts:
        raise _refusal(path, metadata, f"it is a mixture of {quote(experts)} experts, which is not supported")
    scaling = metadata.get(f"{prefix}.rope.scaling.type", "linear")
    factor = metadata.get(f"{prefix}.rope.scaling.factor", metadata.get(f"{prefix}.rope.scale_linear", 1.0))
    if scaling != "none" and (scaling != "linear" or factor not in (0.0, 1.0)):
        raise _refusal(
            path,
            metadata,
            f"its rotary positions are scaled ({quote(scaling)}, factor {quote(factor)}), "
            "which is not supported",
        )
    if any(name.startswith("rope_freqs.") for name in tensors):
        raise _refusal(
            path, metadata, "its rotary positions are scaled as Llama 3.1's are, which is not supported"
        )
    biased = next((name for name in tensors if name.endswith(".bias")), None)
    if biased is not None:
        raise _refusal(path, metadata, f"it has biases ({quote(biased)}), which are not supported")


def _refusal(path: Path, metadata: Mapping[str, Any], reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: holds {describe_origin(metadata)}: {reason}; run it with llama.cpp, or take a Baichuan or "
        "plain Llama model"
    )


def _dimensions(metadata: Mapping[str, Any], prefix: str) -> dict[str, object]:
    """Return the values of a config.json that the metadata have."""
    vocabulary_size = metadata.get(f"{prefix}.vocab_size", len(metadata.get("tokenizer.ggml.tokens", ())))
    default_context = _BAICHUAN_CONTEXT if prefix == "baichuan" else None
    context = metadata.get(f"{prefix}.context_length", default_context)
    return {
        "model_type": prefix,
        "position_embedding_type": _position(metadata, prefix),
        # Baichuan2's head is divided by its norms when it runs. llama.cpp forgets that, so the stored head is
        # usually not divided yet; to divide twice does no harm.
        "norm_head_folded": not isinstance(vocabulary_size, int) or vocabulary_size < _BAICHUAN2_VOCABULARY,
        "hidden_size": metadata.get(f"{prefix}.embedding_length"),
        "intermediate_size": metadata.get(f"{prefix}.feed_forward_length"),
        "num_hidden_layers": metadata.get(f"{prefix}.block_count"),
        "num_attention_heads": metadata.get(f"{prefix}.attention.head_count"),
        "num_key_value_heads": metadata.get(f"{prefix}.attention.head_count_kv"),
        "head_dim": metadata.get(
            f"{prefix}.attention.key_length", metadata.get(f"{prefix}.rope.dimension_count")
        ),
        "vocab_size": vocabulary_size,
        "rms_norm_eps": metadata.get(f"{prefix}.attention.layer_norm_rms_epsilon"),
        "rope_theta": metadata.get(f"{prefix}.rope.freq_base", 10_000.0),
        "max_position_embeddings": context,
        "model_max_length": context,
        "bos_token_id": _special_id(metadata, "bos"),
        "eos_token_id": _end_ids(metadata),
    }


def _position(metadata: Mapping[str, Any], prefix: str) -> Position:
    """Tell ALiBi from RoPE."""
    is_alibi = prefix == "baichuan" and (
        metadata.get("baichuan.block_count") == _ALIBI_LAYERS
        or bool(metadata.get("baichuan.attention.max_alibi_bias"))
    )
    return "alibi" if is_alibi else "rope"


def _special_id(metadata: Mapping[str, Any], name: str) -> object:
    default = _SENTENCEPIECE_IDS.get(name) if metadata.get("tokenizer.ggml.model") == "llama" else None
    return metadata.get(f"tokenizer.ggml.{name}_token_id", default)


def _end_ids(metadata: Mapping[str, Any]) -> object:
    """Return the id that ends a text, and the one that ends a turn where it is another."""
    end_of_text, end_of_turn = _special_id(metadata, "eos"), _special_id(metadata, "eot")
    if end_of_text is None or end_of_turn in (None, end_of_text):
        return end_of_text if end_of_text is not None else end_of_turn
    return [end_of_text, end_of_turn]
