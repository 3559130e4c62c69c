"""Byte-level BPE from a ``tokenizer.json``: the tokenizer of the demo model and of most Llama-layout models.

The ``tokenizers`` library cuts the text; the bytes of a token are looked up here, so that a stream can be
decoded token by token. Not here: role markers and their order (``template``).
Source: GPT-2's ``bytes_to_unicode``; the ``encode_special_tokens`` attribute of ``tokenizers``.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

from tokenizers import Tokenizer as LibraryTokenizer
from typing_extensions import Self

from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.files import find_json, read_bytes
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.text.tokenizer import PROBE, Tokenizer, check_text

__all__ = ["BpeTokenizer"]

_REPLACEMENT = "\ufffd"


def _character_of_byte() -> dict[int, str]:
    """Return how GPT-2 writes each byte: printable ones as themselves, the others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + index) for index, byte in enumerate(others)
    }


_CHARACTER_OF_BYTE = _character_of_byte()
_BYTE_OF_CHARACTER = {character: byte for byte, character in _CHARACTER_OF_BYTE.items()}


class BpeTokenizer(Tokenizer):
    """A byte-level BPE; its special tokens are control ids.

    A vocabulary can lack single bytes (SmolLM2's lacks 0x04 and the first byte of planes 4 to 11, among
    others): a character that needs one is encoded as U+FFFD, where the library would drop it silently.
    """

    def __init__(self, library: LibraryTokenizer, stop_names: frozenset[str] = frozenset()) -> None:
        self._library = library
        # Special tokens that a user types are then cut into ordinary ones.
        library.encode_special_tokens = True
        added = library.get_added_tokens_decoder()
        self._control_of_name = {token.content: i for i, token in added.items() if token.special}
        self._bytes_of_added = {
            i: b"" if token.special else token.content.encode("utf-8") for i, token in added.items()
        }
        self._stop_ids = frozenset(i for name, i in self._control_of_name.items() if name in stop_names)
        # A byte is a character of its piece, so that a character of the text is one or more.
        self._longest_token = max(map(len, library.get_vocab()), default=1)
        self._missing_bytes = bytes(
            byte for byte, name in _CHARACTER_OF_BYTE.items() if library.token_to_id(name) is None
        )

    @classmethod
    def open(cls, path: Path) -> Self:
        """Read a ``tokenizer.json``, and the name of its end token from ``tokenizer_config.json`` beside it.

        Raises: CheckpointError when it cannot be read, is damaged, or is not byte-level.
        """
        content, stop_names = read_bytes(path), _stop_names(path.with_name("tokenizer_config.json"))
        with _library_faults(path):
            library = LibraryTokenizer.from_str(content.decode("utf-8"))
            # What training left on: a cut-off question, or 63 control ids in front of a short one.
            library.no_truncation()
            library.no_padding()
            tokenizer = cls(library, stop_names)
            tokenizer._check_lossless(path)
        return tokenizer

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, control ids included."""
        return self._library.get_vocab_size()

    @property
    def stop_ids(self) -> frozenset[int]:
        """The end token of ``tokenizer_config.json``."""
        return self._stop_ids

    @property
    def longest_token(self) -> int:
        """The most characters that one token covers, of any token."""
        return self._longest_token

    def encode(self, text: str) -> list[int]:
        """Return ids whose decoding is ``text``; special tokens are spelled out as ordinary text.

        Raises: RequestError when the text is not Unicode (a lone surrogate).
        """
        check_text(text)
        # Unlike ``encode``, a batch lets other threads run: a text of some MB takes seconds.
        (encoding,) = self._library.encode_batch_fast([self._expressible(text)], add_special_tokens=False)
        return encoding.ids

    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token, possibly a part of a character; none for a control id.

        Raises: RequestError for an id outside the vocabulary.
        """
        if token_id in self._bytes_of_added:
            return self._bytes_of_added[token_id]
        # The library's ids have 32 bits.
        piece = self._library.id_to_token(token_id) if 0 <= token_id < 2**32 else None
        if piece is None:
            raise RequestError(
                f"token id {token_id} is not in the vocabulary; 0 to {self.vocabulary_size - 1} are"
            )
        return b"".join(
            bytes([_BYTE_OF_CHARACTER[c]]) if c in _BYTE_OF_CHARACTER else c.encode("utf-8") for c in piece
        )

    def control_id(self, name: str) -> int | None:
        """Return the control id written ``name`` in the vocabulary, or None when there is none."""
        return self._control_of_name.get(name)

    def _check_lossless(self, path: Path) -> None:
        """Check that text comes back as it was, also around every added token that is text."""
        normalizer = self._library.normalizer
        kind = "a byte-level BPE without prefix space"
        if normalizer is not None:
            kind = f"lossless: its normalizer is {type(normalizer).__name__}, none is allowed"
        names = (content.decode() for content in self._bytes_of_added.values() if content)
        for text in (PROBE, *(f" {name} x {name}\n" for name in names)):
            ids = self.encode(text)
            text_seen = self.decode(ids)
            if text_seen != text or not all(map(self.token_bytes, ids)):
                raise CheckpointError(
                    f"{path} is not {kind}: {quote(text)} comes back as {quote(text_seen)}; "
                    "take the tokenizer of the original model"
                )

    def _expressible(self, text: str) -> str:
        data = text.encode("utf-8")
        if len(data.translate(None, self._missing_bytes)) == len(data):
            return text
        missing = frozenset(self._missing_bytes)
        return "".join(_REPLACEMENT if missing.intersection(c.encode("utf-8")) else c for c in text)


@contextmanager
def _library_faults(path: Path) -> Generator[None, None, None]:
    """Turn whatever the library raises over a file into one error.

    Raises: CheckpointError.
    """
    try:
        yield
    except (CheckpointError, KeyboardInterrupt):
        raise
    except BaseException as error:  # bare Exception for every fault; a panic of Rust is a BaseException
        raise CheckpointError(
            f"{path} is not a tokenizer: {quote(str(error))}; copy it again from the original model"
        ) from error


def _stop_names(path: Path) -> frozenset[str]:
    """Return the end token's name: a string, or an object with its content."""
    name = (find_json(path) or {}).get("eos_token")
    if isinstance(name, dict):
        name = cast("dict[str, object]", name).get("content")
    return frozenset({name}) if isinstance(name, str) else frozenset()
