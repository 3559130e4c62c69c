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

_BEGINNING = 2
"""Bytes by which tokens are looked up: a text is compared with few lengths then."""
_CUT_WELL = 512
"""Bytes of a fixed text that are cut into the longest tokens at every step."""


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

    The library cuts only the fixed texts of a grammar into tokens, at every step what is left of one, and any
    cut will do. The next tokens are the longest that fit; what is far behind them is cut into bytes.
    """

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes], special_ids: Sequence[int], eos_id: int) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.eos_token_id = eos_id
        self._ids = {token: token_id for token_id, token in enumerate(tokens) if token and token_id != eos_id}
        sizes: dict[bytes, set[int]] = {}
        for token in self._ids:
            sizes.setdefault(token[:_BEGINNING], set()).add(len(token))
        self._sizes = {beginning: sorted(values, reverse=True) for beginning, values in sizes.items()}

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = []
        start = 0
        while start < min(len(text), _CUT_WELL):
            piece = self._longest_piece(text, start)
            if piece:
                ids.append(self._ids[piece])
            start += len(piece) or 1
        rest = (text[place : place + 1] for place in range(start, len(text)))
        return ids + [self._ids[byte] for byte in rest if byte in self._ids]

    def _longest_piece(self, text: bytes, start: int) -> bytes:
        """Return the longest token at a place of a text; nothing where there is none."""
        for beginning in range(_BEGINNING, 0, -1):
            for size in self._sizes.get(text[start : start + beginning], ()):
                if text[start : start + size] in self._ids:
                    return text[start : start + size]
        return b""


def _refusal(reason: str) -> RequestError:
    """Return the error for a grammar that the library refuses, with the first line of its reason."""
    named = _PLACE.sub("", first_line(reason))
    return RequestError(f"the grammar is not supported: {named}; take out what is named")


def first_line(text: str) -> str:
    """Return the first line of what the library says; the rest repeats the grammar."""
    return text.partition("\n")[0]
