"""Write the tokenizer of a GGUF file as the files that Hugging Face's tools, and ``text``, read.

Not here: the two kinds (``gguf_bpe``, ``gguf_sentencepiece``).
Source: ``llama_vocab`` of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from baichuan2_tpu.checkpoint.formats.gguf_bpe import CUTTING_RULES, build_bpe
from baichuan2_tpu.checkpoint.formats.gguf_sentencepiece import adds_space, build_sentencepiece
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import write_json, write_whole
from baichuan2_tpu.quoting import quote

__all__ = ["check_tokenizer", "write_tokenizer"]

_BPE, _SENTENCEPIECE = "gpt2", "llama"
_UNUSED_TYPE = 5
_KNOWN_TYPES = frozenset(range(1, 7))
_LISTS: Mapping[str, Mapping[str, type]] = {
    _BPE: {"tokens": str, "token_type": int, "merges": str},
    _SENTENCEPIECE: {"tokens": str, "token_type": int, "scores": float},
}
_NAMED_TOKENS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_SENTENCEPIECE_IDS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}
"""What llama.cpp takes where a file names none."""


@dataclass(frozen=True, slots=True)
class _Files:
    """A tokenizer as it will be written."""

    name: str
    content: bytes
    settings: dict[str, object]


def check_tokenizer(path: Path, metadata: Mapping[str, Any]) -> None:
    """Check that the tokenizer of a GGUF file is of a kind that can be written.

    Raises: CheckpointError naming the file, the key and what is allowed.
    """
    model = metadata.get("tokenizer.ggml.model")
    _check_choice(path, metadata, "tokenizer.ggml.model", tuple(_LISTS))
    if model == _BPE:
        _check_choice(path, metadata, "tokenizer.ggml.pre", CUTTING_RULES)
    for name, kind in _LISTS[cast("str", model)].items():
        key = f"tokenizer.ggml.{name}"
        values: object = metadata.get(key)
        items = cast("list[object]", values) if isinstance(values, list) else [None]
        if not all(type(item) is kind for item in items):
            raise CheckpointError(
                f"{path}: {key} is {quote(cast('object', values))}, allowed is a list of {kind.__name__}; "
                "fetch the file again"
            )
    if model == _SENTENCEPIECE and adds_space(metadata, metadata["tokenizer.ggml.tokens"]):
        raise CheckpointError(
            f"{path}: its tokenizer puts a space before every text (tokenizer.ggml.add_space_prefix), as "
            "Llama 2's does; allowed are those that keep text as it is (Baichuan's, and byte-level BPE); "
            "run it with llama.cpp"
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
    """Write the tokenizer and tokenizer_config.json; the metadata passed ``check_tokenizer``."""
    files = _build(metadata)
    write_whole(directory / files.name, files.content)
    write_json(directory / "tokenizer_config.json", files.settings, ensure_ascii=False)


def _check_choice(path: Path, metadata: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> None:
    if metadata.get(key) not in allowed:
        raise CheckpointError(
            f"{path}: {key} is {quote(metadata.get(key))}, allowed is {' or '.join(allowed)}; "
            "quantise the original checkpoint instead of the GGUF file"
        )


def _build(metadata: Mapping[str, Any]) -> _Files:
    """Return the files.

    Raises: ValueError, or Exception by a library, for values that do not fit together.
    """
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    if not tokens or len(types) != len(tokens) or len(set(tokens)) != len(tokens):
        raise ValueError(f"{len(tokens)} tokens, {len(types)} token types, or a token twice")
    if not _KNOWN_TYPES.issuperset(types):
        raise ValueError(f"token types {quote(sorted({*types} - _KNOWN_TYPES))}")
    size = len(tokens)
    while size > 1 and types[size - 1] == _UNUSED_TYPE:  # rows that pad the embedding
        size -= 1
    settings = _settings(metadata, tokens, size)
    tokens, types = tokens[:size], types[:size]
    if metadata["tokenizer.ggml.model"] == _BPE:
        content = build_bpe(metadata, tokens, types).to_str().encode()
        return _Files("tokenizer.json", content, settings)
    scores: list[float] = metadata["tokenizer.ggml.scores"]
    special = {name: token for name, token in settings.items() if isinstance(token, str)}
    return _Files("tokenizer.model", build_sentencepiece(tokens, scores[:size], types, special), settings)


def _settings(metadata: Mapping[str, Any], tokens: list[str], size: int) -> dict[str, object]:
    """Return what tokenizer_config.json holds: the named tokens below ``size`` and the chat template."""
    is_bpe = metadata["tokenizer.ggml.model"] == _BPE
    settings: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast" if is_bpe else "LlamaTokenizer",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": metadata.get("tokenizer.ggml.add_bos_token") is True,
    }
    for name, key in _NAMED_TOKENS.items():
        token_id = metadata.get(key, None if is_bpe else _SENTENCEPIECE_IDS.get(name))
        if token_id is None:
            continue
        if token_id not in range(len(tokens)):
            raise ValueError(f"{key} is {quote(token_id)}, there are {len(tokens)} tokens")
        if token_id < size:
            settings[name] = tokens[token_id]
    if isinstance(template := metadata.get("tokenizer.chat_template"), str):
        settings["chat_template"] = template
    return settings
