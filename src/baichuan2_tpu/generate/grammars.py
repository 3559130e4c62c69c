"""Grammars that answers can be held to: JSON, JSON schemas, and text with JSON in it, through llguidance.

llguidance works on the bytes of tokens, and so on any tokenizer; a schema it cannot enforce in full is
refused by name. Not here: what a client asks for (the server), choosing a token (``answer``).
Source: ``LLMatcher`` and the Lark dialect of llguidance 1.3 and later.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.constraint import Constraint, Grammar
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["Grammars", "json_rule"]

# One line break and an indentation at most: a model cannot fill its answer with spaces for ever.
_SPACE = r"\n? {0,12}"

# To compile takes the square of the number of optional properties: 12 s for 5,000 of them, 150 KB.
_MAX_SCHEMA = 65_536


class Grammars:
    """Compiles grammars for one tokenizer, from any thread.

    To build it takes a second by Baichuan2's vocabulary, to compile a usual grammar some milliseconds.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._size = tokenizer.vocabulary_size
        self._library = LLTokenizer(TokenizerWrapper(_Vocabulary(tokenizer)))

    def json_schema(self, schema: Mapping[str, object]) -> Grammar:
        """Return the grammar of the JSON that a schema allows, its keys in the schema's order.

        Raises: RequestError naming what of the schema is not supported.
        """
        return self.lark(f"start: {json_rule(schema)}")

    def lark(self, grammar: str) -> Grammar:
        """Compile a grammar in llguidance's dialect of Lark.

        Raises: RequestError naming what of it is not supported.
        """
        matcher = LLMatcher(self._library, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if not matcher.is_error():
            matcher.compute_bitmask()  # some grammars show only here that they allow nothing
        if matcher.is_error():
            raise _refusal(matcher.get_error())
        return _Grammar(matcher, self._size)


def json_rule(schema: Mapping[str, object]) -> str:
    """Return what stands, in a grammar for ``Grammars.lark``, for the JSON that a schema allows.

    Raises: RequestError when the schema is too deep or too large.
    """
    try:
        written = json.dumps({**schema, "x-guidance": {"whitespace_pattern": _SPACE}})
    except RecursionError as exc:
        raise _refusal(str(exc)) from exc
    if len(written) > _MAX_SCHEMA:
        raise RequestError(f"the schema has {len(written)} characters as JSON; {_MAX_SCHEMA} are allowed")
    return f"%json {written}"


class _Vocabulary:
    """A tokenizer as llguidance wants it; one place behind the vocabulary stands for every stop id."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id = tokenizer.vocabulary_size
        self.tokens = [*map(tokenizer.token_bytes, range(self.eos_token_id)), b"<end>"]
        self.special_token_ids = [
            *(token_id for token_id, content in enumerate(self.tokens) if not content),
            self.eos_token_id,
        ]

    def __call__(self, text: bytes) -> list[int]:
        return self._tokenizer.encode(text.decode())


class _Grammar(Grammar):
    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size

    def start(self) -> Constraint:
        return _Constraint(self._matcher.deep_copy(), self._size)


class _Constraint(Constraint):
    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size

    @property
    def is_complete(self) -> bool:
        return self._matcher.is_stopped()

    def mask(self, logits: NDArray[np.float32], stop_ids: Collection[int]) -> NDArray[np.float32]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.zeros(logits.size, np.bool_)  # a model may have more rows than its tokenizer has tokens
        allowed[: self._size] = np.unpackbits(bits, count=self._size, bitorder="little")
        allowed[list(stop_ids)] = self._matcher.is_accepting()
        return np.where(allowed, logits, np.float32(-np.inf))

    def accept(self, token_id: int) -> None:
        self._matcher.consume_token(token_id)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _first_line(self._matcher.get_error())
            raise RequestError(f"the answer cannot be held to the grammar: {reason}; make it simpler")


def _refusal(reason: str) -> RequestError:
    return RequestError(f"the grammar is not supported: {_first_line(reason)}; take out what is named")


def _first_line(text: str) -> str:
    return text.partition("\n")[0]
