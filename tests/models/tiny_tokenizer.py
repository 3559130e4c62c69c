"""Tokenizers small enough to train in a test: one like Baichuan2's, one like the demo model's.

Both keep the real ones' control tokens, so that the templates and the rule against injection can be tested.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceTrainer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

__all__ = ["BPE_SPECIAL", "SENTENCEPIECE_RESERVED", "write_bpe", "write_sentencepiece"]

SENTENCEPIECE_RESERVED = ["<SEP>", "<CLS>", *(f"<reserved_{n}>" for n in range(100, 110))]
BPE_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

_CORPUS = [
    "The capital of France is Paris, and the capital of England is London.",
    "请使用C++写一段冒泡排序算法。你好吗?你好!",
    "system user assistant reserved 106 107 im start end",
]


def write_sentencepiece(directory: Path) -> None:
    """Train ``tokenizer.model``: BPE, identity normalisation, byte fallback, tags and roles user-defined."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter(_CORPUS * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        hard_vocab_limit=False,
        character_coverage=1.0,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        user_defined_symbols=["<SEP>", "<CLS>", "\n", "\t", "<td>", "...", *SENTENCEPIECE_RESERVED[2:]],
        minloglevel=2,
    )
    (directory / "tokenizer.model").write_bytes(model.getvalue())


def write_bpe(directory: Path, special: Sequence[str] = BPE_SPECIAL) -> None:
    """Train ``tokenizer.json`` and ``tokenizer_config.json``; the last special token is the end token."""
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        special_tokens=[AddedToken(name, special=True, normalized=False) for name in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_CORPUS * 20, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": special[-1]}))
