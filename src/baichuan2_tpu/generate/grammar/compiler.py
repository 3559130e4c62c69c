"""llguidance itself: a vocabulary in the form that it expects, and one grammar compiled.

Used in the server's process and in the child that tries grammars first, so that both do the same work.
Not here: what grammars there are (``grammars``), limits (``trial``).
Source: ``LLTokenizer``, ``LLMatcher`` and ``LLParserLimits`` of llguidance 1.3 and later.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from baichuan2_tpu.errors import RequestError

__all__ = ["compile_grammar", "first_line", "open_library"]

# The library's place in a grammar that no caller wrote, and its own step.
_PLACE = re.compile(r"^at \d+\(\d+\): |failed to compile JSON schema: ")


def open_library(tokens: Sequence[bytes], special_ids: Sequence[int], eos_id: int) -> LLTokenizer:
    """Return llguidance's table of a vocabulary: a second's work by Baichuan2's."""
    return LLTokenizer(TokenizerWrapper(_Vocabulary(tokens, special_ids, eos_id)))


def compile_grammar(library: LLTokenizer, grammar: str) -> LLMatcher:
    """Compile a grammar, without any limit of our own.

    Raises: RequestError naming what of it is not supported.
    """
    matcher = LLMatcher(library, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
    if not matcher.is_error():
        matcher.compute_bitmask()  # some grammars show only here that they allow nothing
    if matcher.is_error():
        raise _refusal(matcher.get_error())
    return matcher


class _Vocabulary:
    """A vocabulary as llguidance wants it; one id behind it stands for every stop id.

    The library cuts only the fixed texts of a grammar into tokens, and any cut will do: the longest that fit.
    """

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special_ids: Sequence[int], eos_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = eos_id
        self._ids = {token: token_id for token_id, token in enumerate(tokens) if token and token_id != eos_id}
        self._longest = max(map(len, self._ids), default=0)

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < len(text):
            pieces = (text[start : start + size] for size in range(self._longest, 0, -1))
            piece = next((piece for piece in pieces if piece in self._ids), b"")
            if piece:
                ids.append(self._ids[piece])
            start += len(piece) or 1
        return ids


def _refusal(reason: str) -> RequestError:
    """Return the error for a grammar that the library refuses, with the first line of its reason."""
    named = _PLACE.sub("", first_line(reason))
    return RequestError(f"the grammar is not supported: {named}; take out what is named")


def first_line(text: str) -> str:
    """Return the first line of what the library says; the rest repeats the grammar."""
    return text.partition("\n")[0]
