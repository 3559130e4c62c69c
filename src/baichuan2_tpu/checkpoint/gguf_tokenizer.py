"""Write the tokenizer of a GGUF file as the files that Hugging Face's tools, and ``text``, read.

Only byte-level BPE with the cutting rules in ``_PRE_TOKENIZERS``: a wrong rule gives wrong ids silently.
Source: ``llama_vocab`` of llama.cpp (token types, pre-tokenizer names); the ``tokenizer.json`` of SmolLM2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import write_json

__all__ = ["check_tokenizer", "write_tokenizer"]

_CONTROL_TYPE = 3
_NAMED_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}


def _byte_level() -> pre_tokenizers.ByteLevel:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.Sequence:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


_PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _byte_level,
    "smollm": _single_digits,
}


def check_tokenizer(path: Path, metadata: Mapping[str, Any]) -> None:
    """Check that the tokenizer of a GGUF file is of a kind that can be written.

    Raises: CheckpointError naming the file, the key and what is allowed.
    """
    allowed = {"tokenizer.ggml.model": ["gpt2"], "tokenizer.ggml.pre": [*_PRE_TOKENIZERS]}
    for key, names in allowed.items():
        if metadata.get(key) not in names:
            raise CheckpointError(
                f"{path}: {key} is {metadata.get(key)!r}, allowed is {' or '.join(names)}; "
                "quantise the original checkpoint instead of the GGUF file"
            )
    tokens = metadata.get("tokenizer.ggml.tokens", [])
    types = metadata.get("tokenizer.ggml.token_type", [])
    if not tokens or len(types) != len(tokens) or "tokenizer.ggml.merges" not in metadata:
        raise CheckpointError(
            f"{path}: has {len(tokens)} tokens, {len(types)} token types, or no merges; fetch the file again"
        )


def write_tokenizer(metadata: Mapping[str, Any], directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; the metadata passed ``check_tokenizer``."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]]()
    tokenizer.decoder = decoders.ByteLevel()
    types = metadata["tokenizer.ggml.token_type"]
    controls = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TYPE]
    added = [AddedToken(token, special=True, normalized=False) for token in controls]
    tokenizer.add_special_tokens(added)  # pyright: ignore[reportUnknownMemberType] - their stub says "list"
    tokenizer.save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", _settings(metadata, tokens), ensure_ascii=False)


def _settings(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, object]:
    """Return what tokenizer_config.json holds: the named tokens and the chat template."""
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token", False),
    }
    for name, key in _NAMED_TOKENS.items():
        if key in metadata:
            settings[name] = tokens[metadata[key]]
    if "tokenizer.chat_template" in metadata:
        settings["chat_template"] = metadata["tokenizer.chat_template"]
    return settings
