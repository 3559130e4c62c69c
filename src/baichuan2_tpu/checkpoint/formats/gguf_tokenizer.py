"""Write the tokenizer of a GGUF file as the files that Hugging Face's tools, and ``text``, read.

Only byte-level BPE with the cutting rules in ``_PRE_TOKENIZERS``: a wrong rule gives wrong ids silently.
Source: ``llama_vocab`` of llama.cpp (token types, pre-tokenizer names); the ``tokenizer.json`` of SmolLM2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import write_json, write_whole
from baichuan2_tpu.quoting import quote

__all__ = ["check_tokenizer", "write_tokenizer"]

_CONTROL_TYPE = 3
_LISTS: Mapping[str, type] = {
    "tokenizer.ggml.tokens": str,
    "tokenizer.ggml.token_type": int,
    "tokenizer.ggml.merges": str,
}
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
                f"{path}: {key} is {quote(metadata.get(key))}, allowed is {' or '.join(names)}; "
                "quantise the original checkpoint instead of the GGUF file"
            )
    for key, kind in _LISTS.items():
        values: object = metadata.get(key)
        items = cast("list[object]", values) if isinstance(values, list) else [None]
        if not all(type(item) is kind for item in items):
            raise CheckpointError(
                f"{path}: {key} is {quote(cast('object', values))}, allowed is a list of {kind.__name__}; "
                "fetch the file again"
            )
    try:
        _build(metadata)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the library's faults are bare Exceptions, and panics of Rust
        raise CheckpointError(
            f"{path}: its tokenizer is damaged ({quote(str(error))}); fetch the file again"
        ) from error


def write_tokenizer(metadata: Mapping[str, Any], directory: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json; the metadata passed ``check_tokenizer``."""
    tokenizer, settings = _build(metadata)
    write_whole(directory / "tokenizer.json", tokenizer.to_str())
    write_json(directory / "tokenizer_config.json", settings, ensure_ascii=False)


def _build(metadata: Mapping[str, Any]) -> tuple[Tokenizer, dict[str, object]]:
    """Return the tokenizer, and what tokenizer_config.json says of it.

    Raises: ValueError, or Exception by the library, for values that do not fit together.
    """
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    merges = [_merge(text) for text in metadata["tokenizer.ggml.merges"]]
    if not tokens or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(types)} token types, or a token twice")
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]]()
    tokenizer.decoder = decoders.ByteLevel()
    controls = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TYPE]
    added = [AddedToken(token, special=True, normalized=False) for token in controls]
    tokenizer.add_special_tokens(added)  # pyright: ignore[reportUnknownMemberType] - their stub says "list"
    return tokenizer, _settings(metadata, tokens)


def _merge(text: str) -> tuple[str, str]:
    first, space, second = text.partition(" ")
    if not space:
        raise ValueError(f"the merge {quote(text)} has one part")
    return first, second


def _settings(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, object]:
    """Return what tokenizer_config.json holds: the named tokens and the chat template."""
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token") is True,
    }
    for name, key in _NAMED_TOKENS.items():
        if key in metadata:
            if metadata[key] not in range(len(tokens)):
                raise ValueError(f"{key} is {quote(metadata[key])}, there are {len(tokens)} tokens")
            settings[name] = tokens[metadata[key]]
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        settings["chat_template"] = template
    return settings
