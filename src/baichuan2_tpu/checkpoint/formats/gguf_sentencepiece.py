"""Turn the SentencePiece vocabulary of a GGUF file back into a ``tokenizer.model``.

GGUF keeps pieces, scores and types, and drops two things: which pieces match literally (user-defined ones are
stored as normal ones), and that Baichuan's tokenizer puts no space before a text. SentencePiece's trainer
lays out user-defined pieces before the bytes, and learned ones behind them.
Source: ``sentencepiece_model.proto`` and ``TrainerInterface::InitMetaPieces`` of SentencePiece;
``_create_vocab_sentencepiece`` of llama.cpp's converter.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from sentencepiece import SentencePieceProcessor

__all__ = ["adds_space", "build_sentencepiece"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
"""Types of pieces; ggml counts as SentencePiece does."""
_BPE = 2
_SPACE_MARK = "\u2581"
_BAICHUAN_MARKS = ("<reserved_106>", "<reserved_107>")

# Numbers of fields in sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _BYTE_FALLBACK, _UNK_PIECE, _BOS_PIECE, _EOS_PIECE = 3, 35, 45, 46, 47
_NAME, _ADD_DUMMY_PREFIX, _REMOVE_SPACES, _ESCAPE_SPACES = 1, 3, 4, 5


def adds_space(metadata: Mapping[str, Any], tokens: Sequence[str]) -> bool:
    """Tell whether the tokenizer puts a space before every text: Llama 2's does, Baichuan's does not."""
    if set(_BAICHUAN_MARKS) <= set(tokens):
        return False
    return metadata.get("tokenizer.ggml.add_space_prefix", True) is not False


def build_sentencepiece(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], special: Mapping[str, str]
) -> bytes:
    """Return the content of a ``tokenizer.model``; ``special`` names the pieces bos_token and eos_token.

    Raises: ValueError, or RuntimeError by the library, for values that do not fit together.
    """
    if len(scores) != len(tokens) or not all(map(math.isfinite, scores)):
        raise ValueError(f"{len(tokens)} tokens, {len(scores)} scores, or a score that is no number")
    types = _restore_user_defined(types)
    pieces = b"".join(
        _field(_PIECES, _encode_piece(token, score, kind))
        for token, score, kind in zip(tokens, scores, types, strict=True)
    )
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == _UNKNOWN), "<unk>")
    trainer = (
        _number(_MODEL_TYPE, _BPE)
        + _number(_BYTE_FALLBACK, int(_BYTE in types))
        + _field(_UNK_PIECE, unknown.encode())
        + _field(_BOS_PIECE, special.get("bos_token", "<s>").encode())
        + _field(_EOS_PIECE, special.get("eos_token", "</s>").encode())
    )
    normalizer = (
        _field(_NAME, b"identity")
        + _number(_ADD_DUMMY_PREFIX, 0)
        + _number(_REMOVE_SPACES, 0)
        + _number(_ESCAPE_SPACES, 1)
    )
    content = pieces + _field(_TRAINER, trainer) + _field(_NORMALIZER, normalizer)
    SentencePieceProcessor().LoadFromSerializedProto(content)
    return content


def _restore_user_defined(types: Sequence[int]) -> list[int]:
    """Mark the normal pieces before the first byte as user-defined, if learned ones follow the bytes."""
    first_byte = types.index(_BYTE) if _BYTE in types else 0
    if _NORMAL not in types[first_byte:]:
        return list(types)
    head = [_USER_DEFINED if kind == _NORMAL else kind for kind in types[:first_byte]]
    return [*head, *types[first_byte:]]


def _encode_piece(token: str, score: float, kind: int) -> bytes:
    # Converters write the spaces of added tokens as spaces, SentencePiece as marks.
    text = token.replace(" ", _SPACE_MARK) if kind == _USER_DEFINED else token
    return _field(1, text.encode()) + b"\x15" + struct.pack("<f", score) + _number(3, kind)


def _field(number: int, content: bytes) -> bytes:
    """Encode a field of bytes."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    """Encode a field that is a number."""
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])
