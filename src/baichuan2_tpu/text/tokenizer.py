"""What the package asks of a tokenizer, and decoding a stream of tokens, never half a character at a time.

A tokenizer is a table of byte strings with a rule for cutting text into them. Ids that mean something to the
program (end of an answer, role of a speaker, reserved places) are control ids: no text encodes to one, and
they decode to nothing, so what a user types can never act as a command.
Not here: which tokenizer a checkpoint has (``registry``), the order of messages in a prompt (``template``),
holding back stop strings (``generate.stops``).
"""

from __future__ import annotations

import codecs
from abc import abstractmethod
from collections.abc import Iterable
from typing import Protocol

from baichuan2_tpu.errors import RequestError

__all__ = ["PROBE", "StreamDecoder", "Tokenizer", "check_text", "fewest_tokens"]


PROBE = (
    " a  Bb\t\r\n"  # white space at both ends and in runs, capitals
    "\u0130\u0131\u00df\u01c6 \u212a"  # letters that case folding, or NFC, makes others
    "\u00e9e\u0301a\u0323\u0307\u1112\u1161\u11ab"  # composed and decomposed letters
    "\ufb01\u2460\u00bd\uff21\uff0c\u3000\uff76"  # ligatures, circled and full-width forms: NFKC
    "\u4f60\uf900\u2f00\u200b\u00ad\n "  # ideographs with compatible twins, marks without width
)
"""A text that comes back from encoding and decoding only where nothing rewrites it."""


class Tokenizer(Protocol):
    """Turns text into ids and back."""

    @property
    @abstractmethod
    def vocabulary_size(self) -> int:
        """Number of ids, control ids included."""

    @property
    @abstractmethod
    def stop_ids(self) -> frozenset[int]:
        """Ids with which the model ends a text."""

    @property
    @abstractmethod
    def longest_token(self) -> int:
        """The most characters that one token covers, of any token."""

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return ids whose decoding is ``text``; none of them is a control id.

        Raises: RequestError when the text is not Unicode (a lone surrogate).
        """

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """Return the UTF-8 bytes of one token, possibly a part of a character; none for a control id.

        Raises: RequestError for an id outside the vocabulary.
        """

    @abstractmethod
    def control_id(self, name: str) -> int | None:
        """Return the control id written ``name`` in the vocabulary, or None when there is none."""

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ``ids``; bytes that are not UTF-8 become U+FFFD.

        Raises: RequestError for an id outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


def fewest_tokens(tokenizer: Tokenizer, text: str) -> int:
    """Return how many tokens a text has at least, known from its length alone.

    3 MB of digits take 10 s to encode, which need not be done to know that they do not fit.
    """
    return -(-len(text) // tokenizer.longest_token)


def check_text(text: str) -> None:
    """Check that ``text`` can be written as UTF-8.

    Raises: RequestError naming the place of a lone surrogate.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as exc:
        raise RequestError(
            f"text holds a lone surrogate U+{ord(text[exc.start]):04X} at character {exc.start}; "
            "only Unicode text is allowed: decode the input as UTF-8"
        ) from exc


class StreamDecoder:
    """Gives out text as soon as its characters are complete.

    All that was given out, with the flush, is ``tokenizer.decode`` of all ids. Only the bytes of an
    unfinished character are kept, so a token costs the same at any place of the stream.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """Return the text that this token completes, possibly none.

        Raises: RequestError for an id outside the vocabulary.
        """
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """Return U+FFFD for a character that was never finished, else nothing."""
        return self._decoder.decode(b"", final=True)
