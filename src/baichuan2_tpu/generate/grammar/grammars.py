"""Grammars that answers can be held to: JSON, JSON schemas, and text with JSON in it, through llguidance.

llguidance works on the bytes of tokens, and so on any tokenizer; a schema it cannot enforce in full is
refused by name. Not here: what a client asks for (the server), choosing a token (``answer``).
Source: ``LLMatcher`` and the Lark dialect of llguidance 1.3 and later.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping

import numpy as np
from llguidance import LLMatcher
from numpy.typing import NDArray

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.caller import Caller
from baichuan2_tpu.generate.grammar.compiler import compile_grammar, first_line, open_library
from baichuan2_tpu.generate.grammar.constraint import Constraint, Grammar
from baichuan2_tpu.generate.grammar.schema_bounds import check_schema, likely_cause
from baichuan2_tpu.generate.grammar.store import GrammarStore
from baichuan2_tpu.generate.grammar.trial import GrammarTrial, TrialLimits
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["ANY_OBJECT", "Grammars", "json_rule"]

# One line break and an indentation at most: a model cannot fill its answer with spaces for ever.
_SPACE = r"\n? {0,12}"

ANY_OBJECT: Mapping[str, object] = {"type": "object"}
"""What a client that gives no schema asks for. It is compiled at the start, and kept for everybody."""
_ANY_CALLER = Caller()
_SMALL = 'start: "a"'


class Grammars:
    """Compiles grammars for one tokenizer, from any thread, and keeps the latest.

    To build it takes a second by Baichuan2's vocabulary, to compile a usual grammar some milliseconds. With
    ``limits`` every new grammar is first compiled in a child process that has them (``trial``), as
    grammars of strangers must be; ``close`` ends it.
    """

    def __init__(self, tokenizer: Tokenizer, limits: TrialLimits | None = None) -> None:
        self._size = eos_id = tokenizer.vocabulary_size
        tokens = [*map(tokenizer.token_bytes, range(eos_id)), b"<end>"]
        special_ids = [*(token_id for token_id, content in enumerate(tokens) if not content), eos_id]
        self._library = open_library(tokens, special_ids, eos_id)
        self._trial = None if limits is None else GrammarTrial(tokens, special_ids, eos_id, limits)
        self._store = GrammarStore()

    def json_schema(self, schema: Mapping[str, object], caller: Caller = _ANY_CALLER) -> Grammar:
        """Return the grammar of the JSON that a schema allows, its keys in the schema's order.

        Raises: RequestError naming what of the schema is not supported, or too costly; what ``lark`` raises.
        """
        caller = _ANY_CALLER if schema == ANY_OBJECT else caller
        return self.lark(f"start: {json_rule(schema)}", caller, likely_cause(schema))

    def lark(self, grammar: str, caller: Caller = _ANY_CALLER, cause: str = "") -> Grammar:
        """Compile a grammar in llguidance's dialect of Lark; ``cause`` names what in it may be costly.

        Raises: RequestError naming what of it is not supported; QueueFull; CallerLeft; ShutdownError.
        """
        kept = self._store.find(caller.tenant, grammar)
        if kept is not None:
            return kept
        size_bytes = 0 if self._trial is None else self._trial.check(grammar, cause, caller)
        compiled = _Grammar(compile_grammar(self._library, grammar), self._size)
        self._store.add(caller.tenant, grammar, compiled, size_bytes)
        return compiled

    def warm_up(self) -> None:
        """Start what takes long before a request needs it."""
        self.json_schema(ANY_OBJECT)

    def prove(self) -> None:
        """Compile a small grammar anew. Raises: RequestError when even that does not work."""
        if self._trial is not None:
            self._trial.prove(_SMALL)
        compile_grammar(self._library, _SMALL)

    def close(self) -> None:
        """End the child process, if there is one; closing twice is allowed."""
        if self._trial is not None:
            self._trial.close()


def json_rule(schema: Mapping[str, object]) -> str:
    """Return what stands, in a grammar for ``Grammars.lark``, for the JSON that a schema allows.

    Raises: RequestError when the schema is too deep or too large.
    """
    check_schema(schema)
    return f"%json {json.dumps({**schema, 'x-guidance': {'whitespace_pattern': _SPACE}})}"


class _Grammar(Grammar):
    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher = matcher
        self._size = size

    def start(self) -> Constraint:
        return _Constraint(self._matcher.deep_copy(), self._size, self)


class _Constraint(Constraint):
    def __init__(self, matcher: LLMatcher, size: int, grammar: Grammar) -> None:
        self._matcher = matcher
        self._size = size
        self._grammar = grammar  # counts as in use as long as it is followed

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
            reason = first_line(self._matcher.get_error())
            raise RequestError(f"the answer cannot be held to the grammar: {reason}; make it simpler")
