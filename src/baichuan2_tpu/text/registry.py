"""Open the tokenizer that a checkpoint directory holds.

Not here: what a tokenizer does (``tokenizer``), the kinds there are (one module each).
"""

from __future__ import annotations

from pathlib import Path

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["open_tokenizer"]


def open_tokenizer(directory: Path) -> Tokenizer:
    """Open the tokenizer of a checkpoint: ``tokenizer.model`` or else ``tokenizer.json``.

    Raises: CheckpointError when neither is there, or the one that is cannot be used.
    """
    # Imported here: a checkpoint needs one of the two libraries.
    if (directory / "tokenizer.model").exists():
        from baichuan2_tpu.text.sentencepiece_tokenizer import SentencePieceTokenizer  # noqa: PLC0415

        return SentencePieceTokenizer.open(directory / "tokenizer.model")
    if (directory / "tokenizer.json").exists():
        from baichuan2_tpu.text.bpe_tokenizer import BpeTokenizer  # noqa: PLC0415

        return BpeTokenizer.open(directory / "tokenizer.json")
    raise CheckpointError(
        f"{directory} has no tokenizer: neither tokenizer.model nor tokenizer.json is there; "
        "copy it from the original model"
    )
