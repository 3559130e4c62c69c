"""Decoding a stream of tokens into text, never half a character at a time.

Not here: holding back stop strings (``generate.stops``).
"""

from __future__ import annotations

import codecs

from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["StreamDecoder"]


class StreamDecoder:
    """Gives out text as soon as its characters are whole.

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
