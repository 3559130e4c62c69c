"""The tokenizer of Baichuan and Baichuan2: a SentencePiece model that keeps text as it is.

Not here: role ids and their order (``template``). The official Python class is not used: it breaks on
transformers >= 4.34, and lets a user type role ids.
Source: ``tokenizer.model`` of Baichuan2-7B-Chat; sentencepiece's README on user-defined symbols.
"""

from __future__ import annotations

import re
from pathlib import Path

from sentencepiece import SentencePieceProcessor
from typing_extensions import Self

from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.files import read_bytes
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.text.tokenizer import PROBE, Tokenizer, check_text

__all__ = ["SentencePieceTokenizer"]

# Of the user-defined pieces 3…1088 of Baichuan2, "\n", "\t", HTML tags and punctuation (5…100) are text;
# <SEP>, <CLS> (3, 4) and <reserved_N> (101…1088, the roles among them) are control ids.
_RESERVED = re.compile(r"<(?:SEP|CLS|reserved_[0-9]+)>")

# SentencePiece writes a space as U+2581 and so reads a typed U+2581 back as a space. A reserved literal is
# cut behind its "<", which leaves two ordinary texts.
_CUT = re.compile(r"(\u2581+)|(?<=<)(?=(?:SEP|CLS|reserved_[0-9]+)>)")

_SPACE_MARK = "\u2581"

# With a character that no vocabulary holds: only a model without normalisation, without dummy prefix and with
# byte fallback gives it back.
_PROBE = f"{PROBE}\U0010fffe\n "


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model whose encoding loses nothing."""

    def __init__(self, processor: SentencePieceProcessor) -> None:
        self._processor = processor
        self._size = processor.vocab_size()
        self._longest_token = max(map(len, processor.id_to_piece(list(range(self._size)))), default=1)
        self._bytes_of_id = {processor.piece_to_id(f"<0x{byte:02X}>"): bytes([byte]) for byte in range(256)}
        self._space_mark_ids = [
            processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode("utf-8")
        ]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a ``tokenizer.model`` file.

        Raises: CheckpointError when it cannot be read, is damaged, or rewrites text.
        """
        content = read_bytes(path)
        processor = SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(content)
            tokenizer = cls(processor)
            text = tokenizer.decode(tokenizer.encode(_PROBE))
        except (RuntimeError, ValueError, IndexError) as exc:  # ValueError: a piece that is not UTF-8
            raise CheckpointError(
                f"{path} is not a SentencePiece model: {quote(str(exc))}; "
                "copy it again from the original model"
            ) from exc
        if text != _PROBE:
            raise CheckpointError(
                f"{path} rewrites text: {quote(_PROBE)} comes back as {quote(text)}; only models with "
                "identity normalisation, no dummy prefix and byte fallback (Baichuan, Baichuan2) can be used"
            )
        return tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, control ids included."""
        return self._size

    @property
    def stop_ids(self) -> frozenset[int]:
        """The end-of-text id."""
        return frozenset({self._processor.eos_id()} - {-1})

    @property
    def longest_token(self) -> int:
        """The most characters that one token covers, of any token."""
        return self._longest_token

    def encode(self, text: str) -> list[int]:
        """Return ids whose decoding is ``text``; reserved literals are spelled out as ordinary text.

        Raises: RequestError when the text is not Unicode (a lone surrogate).
        """
        check_text(text)
        ids: list[int] = []
        for part in filter(None, _CUT.split(text)):
            if part.startswith(_SPACE_MARK):
                ids += self._space_mark_ids * len(part)
            else:
                ids += self._processor.encode(part)
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token, possibly a part of a character; none for a control id.

        Raises: RequestError for an id outside the vocabulary.
        """
        if not 0 <= token_id < self._size:
            raise RequestError(f"token id {token_id} is not in the vocabulary; 0 to {self._size - 1} are")
        byte = self._bytes_of_id.get(token_id)
        if byte is not None:
            return byte
        if self._is_control(token_id):
            return b""
        return self._processor.id_to_piece(token_id).replace(_SPACE_MARK, " ").encode("utf-8")

    def control_id(self, name: str) -> int | None:
        """Return the control id written ``name`` in the vocabulary, or None when there is none."""
        token_id = self._processor.piece_to_id(name)
        # SentencePiece answers the unknown id for a piece it does not have.
        is_found = self._processor.id_to_piece(token_id) == name
        return token_id if is_found and self._is_control(token_id) else None

    def _is_control(self, token_id: int) -> bool:
        return (
            self._processor.is_control(token_id)
            or self._processor.is_unknown(token_id)
            or _RESERVED.fullmatch(self._processor.id_to_piece(token_id)) is not None
        )
