"""Write a SentencePiece model as the ``tokenizer.json`` that Hugging Face's tools read.

Out of ``tokenizer.model`` they would make one with merges in the order of ids. Baichuan2's last 26,000 pieces
are not in the order of their scores, so a space before a Chinese character was cut otherwise.
Not here: the tokenizer that this package uses (``text.sentencepiece_tokenizer``).
Source: ``LlamaTokenizer`` and ``SentencePieceExtractor`` of transformers 5.
"""

from __future__ import annotations

from pathlib import Path

from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from baichuan2_tpu.files import write_whole

__all__ = ["write_tokenizer_json"]

_SPACE_MARK = "\u2581"
_SETTINGS: dict[str, object] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "clean_up_tokenization_spaces": False,
    "add_bos_token": False,
}


def write_tokenizer_json(model: Path, target: Path) -> dict[str, object]:
    """Write ``target`` out of a ``tokenizer.model`` and return what tokenizer_config.json says of it.

    Nothing is written for a file that is no SentencePiece model with a piece for every byte: whoever opens
    the tokenizer says what is wrong.
    """
    processor = SentencePieceProcessor()
    try:
        processor.LoadFromFile(str(model))
    except (RuntimeError, OSError):
        return {}
    if not processor.is_byte(processor.piece_to_id("<0x00>")):
        return {}
    write_whole(target, _build(processor).to_str())
    ids = {"bos_token": processor.bos_id(), "eos_token": processor.eos_id(), "unk_token": processor.unk_id()}
    named = {name: processor.id_to_piece(token_id) for name, token_id in ids.items() if token_id >= 0}
    return _SETTINGS | named


def _build(processor: SentencePieceProcessor) -> Tokenizer:
    """Return the same tokenizer of the other library."""
    pieces: list[str] = processor.id_to_piece(list(range(processor.vocab_size())))
    vocabulary = {piece: token_id for token_id, piece in enumerate(pieces)}
    bpe = models.BPE(
        vocab=vocabulary,
        merges=_merges(processor, pieces, vocabulary),
        unk_token=pieces[processor.unk_id()],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE_MARK, prepend_scheme="never", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    # In front of the bytes lie control pieces, and those that are matched before any merge.
    added = [
        AddedToken(pieces[token_id], special=_is_control(processor, token_id), normalized=False)
        for token_id in range(processor.piece_to_id("<0x00>"))
    ]
    tokenizer.add_tokens(added)  # pyright: ignore[reportUnknownMemberType] - their stub says "list"
    return tokenizer


def _is_control(processor: SentencePieceProcessor, token_id: int) -> bool:
    return processor.is_control(token_id) or processor.is_unknown(token_id)


def _merges(
    processor: SentencePieceProcessor, pieces: list[str], vocabulary: dict[str, int]
) -> list[tuple[str, str]]:
    """Return the pairs that make a piece, the piece of the highest score first."""
    first = processor.piece_to_id("<0xFF>") + 1
    order = sorted(range(first, len(pieces)), key=lambda token_id: -processor.get_score(token_id))
    return [
        (piece[:cut], piece[cut:])
        for piece in map(pieces.__getitem__, order)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
