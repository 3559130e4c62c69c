"""Compiled grammars are kept within bounds, and for their own tenant only."""

import pytest

from baichuan2_tpu.errors import QueueFull
from baichuan2_tpu.generate.caller import Caller
from baichuan2_tpu.generate.grammar import store as grammar_store
from baichuan2_tpu.generate.grammar.constraint import Constraint, Grammar
from baichuan2_tpu.generate.grammar.grammars import ANY_OBJECT, Grammars
from baichuan2_tpu.generate.grammar.store import GrammarStore
from doubles.fakes import ByteTokenizer

MEGABYTE = 1 << 20


class AnyGrammar(Grammar):
    def start(self) -> Constraint:
        raise NotImplementedError


def test_a_grammar_serves_its_tenant_alone() -> None:
    # How soon an answer began told one key's holder which schemas another had used.
    grammars = Grammars(ByteTokenizer())
    red, blue = Caller("red"), Caller("blue")
    schema = {"const": "secret"}
    compiled = grammars.json_schema(schema, red)
    assert grammars.json_schema(schema, Caller("red")) is compiled
    assert grammars.json_schema(schema, blue) is not compiled


def test_the_grammar_of_any_object_is_everybodys() -> None:
    grammars = Grammars(ByteTokenizer())
    grammars.warm_up()
    assert grammars.json_schema(ANY_OBJECT, Caller("red")) is grammars.json_schema(ANY_OBJECT)


def test_only_so_many_are_kept_and_the_oldest_of_who_has_most_is_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammar_store, "_MOST_KEPT", 3)
    store = GrammarStore()
    for tenant, text in (("blue", "a"), ("red", "a"), ("red", "b")):
        store.add(tenant, text, AnyGrammar(), 10)
    assert store.find("red", "a") is not None  # used again: now b is the oldest
    store.add("red", "c", AnyGrammar(), 10)
    kept = [(tenant, text) for tenant in ("blue", "red") for text in "abc" if store.find(tenant, text)]
    assert kept == [("blue", "a"), ("red", "a"), ("red", "c")]


def test_large_grammars_are_not_kept_and_those_in_use_are_bounded() -> None:
    store = GrammarStore()
    large = [AnyGrammar() for _ in range(4)]
    for index in range(4):
        store.add("", "large", large[index], 120 * MEGABYTE)
    assert store.find("", "large") is None
    with pytest.raises(QueueFull, match="the schemas in use take all memory that is allowed"):
        store.add("", "more", AnyGrammar(), 120 * MEGABYTE)
    large.pop()
    store.add("", "more", AnyGrammar(), 120 * MEGABYTE)


def test_what_is_kept_has_a_bound_in_bytes() -> None:
    store = GrammarStore()
    for number in range(20):
        store.add("", str(number), AnyGrammar(), 15 * MEGABYTE)
    kept = [number for number in range(20) if store.find("", str(number))]
    assert kept == list(range(12, 20))
