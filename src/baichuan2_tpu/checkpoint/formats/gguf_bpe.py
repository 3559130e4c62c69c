"""Turn the byte-level BPE of a GGUF file into a ``tokenizer.json``.

Only the cutting rules in ``_PRE_TOKENIZERS``: a wrong rule gives wrong ids silently.
Source: ``llama_vocab`` of llama.cpp (token types, pre-tokenizer names); the ``tokenizer.json`` of SmolLM2 and
of Llama 3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from baichuan2_tpu.quoting import quote

__all__ = ["CUTTING_RULES", "build_bpe"]

_CONTROL_TYPE, _USER_DEFINED_TYPE = 3, 4
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level()])


def _llama3() -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(_LLAMA3_WORDS), "isolated")
    return pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


_PRE_TOKENIZERS: Mapping[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "gpt-2": _byte_level,
    "llama-bpe": _llama3,
    "smollm": _single_digits,
}
CUTTING_RULES = tuple(_PRE_TOKENIZERS)
"""The values of ``tokenizer.ggml.pre`` that are known."""
_WHOLE_WORDS = ("llama-bpe",)
"""Rules with which a word that is a token is one, whatever the merges say."""


def build_bpe(metadata: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> Tokenizer:
    """Return the tokenizer; ``types`` are ggml's, one per token.

    Raises: ValueError, or Exception by the library, for values that do not fit together.
    """
    rule: str = metadata["tokenizer.ggml.pre"]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[_merge(text) for text in metadata["tokenizer.ggml.merges"]],
        ignore_merges=rule in _WHOLE_WORDS,
    )
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _PRE_TOKENIZERS[rule]()
    tokenizer.decoder = decoders.ByteLevel()
    # Their stub says "list".
    tokenizer.add_special_tokens(_added(tokens, types, _CONTROL_TYPE))  # pyright: ignore[reportUnknownMemberType]
    tokenizer.add_tokens(_added(tokens, types, _USER_DEFINED_TYPE))  # pyright: ignore[reportUnknownMemberType]
    return tokenizer


def _added(tokens: Sequence[str], types: Sequence[int], kind: int) -> list[AddedToken]:
    """Return the tokens of a type, which are matched before any cutting."""
    return [
        AddedToken(token, special=kind == _CONTROL_TYPE, normalized=False)
        for token, token_type in zip(tokens, types, strict=True)
        if token_type == kind
    ]


def _merge(text: str) -> tuple[str, str]:
    first, space, second = text.partition(" ")
    if not space:
        raise ValueError(f"the merge {quote(text)} has one part")
    return first, second
