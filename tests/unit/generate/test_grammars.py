"""Whatever a model says, an answer with a grammar parses; what cannot be enforced is refused by name."""

import json
from collections.abc import Sequence as Items
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.engine_limits import check_candidates
from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.generate.grammar.compiler import _Vocabulary
from baichuan2_tpu.generate.grammar.constraint import Grammar
from baichuan2_tpu.generate.grammar.grammars import Grammars
from baichuan2_tpu.generate.loop import generate
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.text.tokenizer import Tokenizer
from doubles.fakes import ByteTokenizer, FakeEngine

ANY_OBJECT = {"type": "object"}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["a", "b\n", "你好"]},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3},
        "note": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
    "$defs": {"tag": {"type": "string", "pattern": "^[a-z]{1,3}$"}},
}


class Babbler(FakeEngine):
    """Says anything, and from its 40th token on rather what closes strings, lists and objects."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        super().__init__(tokenizer.vocabulary_size, max_context=256)
        self._generator = np.random.default_rng(seed)
        texts = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocabulary_size)]
        self._closing = np.array([30.0 * (text in b'"}]') * (text != b"") for text in texts], np.float32)

    def logits(self, ids: Items[int]) -> NDArray[np.float32]:
        row = self._generator.standard_normal(self.config.vocabulary_size).astype(np.float32) * 3
        return row + self._closing if len(ids) > 40 else row


def babble(tokenizer: Tokenizer, grammar: Grammar, seed: int, **changes: float) -> Result:
    settings = GenerationSettings(SamplingSettings(seed=seed, **changes), max_tokens=250, grammar=grammar)  # pyright: ignore[reportArgumentType]
    with TrackedSequence(Babbler(tokenizer, seed)) as sequence:
        *_, result = generate(sequence, tokenizer, [1], settings)
    assert isinstance(result, Result)
    assert all(tokenizer.token_bytes(token_id) for token_id in result.token_ids), "a control token was said"
    return result


def check_person(person: dict[str, object]) -> None:
    name, age, tags = person["name"], person["age"], person["tags"]
    assert isinstance(name, str)
    assert len(name) <= 12
    assert isinstance(age, int)
    assert 0 <= age <= 150
    assert person["kind"] in ("a", "b\n", "你好")
    assert isinstance(tags, list)
    assert 1 <= len(tags) <= 3
    assert all(tag.isascii() and tag.isalpha() and tag.islower() and len(tag) <= 3 for tag in tags)
    assert person.get("note") in (None, True, False)
    assert list(person) == [key for key in PERSON["properties"] if key in person]


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_follows_its_schema_whatever_the_model_says(tokenizer: Tokenizer, seed: int) -> None:
    result = babble(tokenizer, Grammars(tokenizer).json_schema(PERSON), seed, top_k=seed)
    assert result.finish_reason == "stop"
    check_person(json.loads(result.text))


def test_an_answer_is_some_json_object_whatever_the_model_says(tokenizer: Tokenizer) -> None:
    grammar = Grammars(tokenizer).json_schema(ANY_OBJECT)
    for seed in range(4):
        result = babble(tokenizer, grammar, seed)
        assert result.finish_reason == "stop"
        assert isinstance(json.loads(result.text), dict)


class TestConstraint:
    tokenizer = ByteTokenizer()
    size = tokenizer.vocabulary_size

    def allowed(self, text: bytes, grammar: Grammar, *, rows: int = 0) -> set[int]:
        constraint = grammar.start()
        for token_id in text:
            constraint.accept(token_id)
        logits = np.zeros(rows or self.size, np.float32)
        masked = constraint.mask(logits, {ByteTokenizer.END_ID})
        assert set(masked) <= {0.0, -np.inf}
        return set(np.flatnonzero(masked == 0).tolist())

    def test_the_end_is_allowed_where_the_grammar_ends_and_nowhere_else(self) -> None:
        grammar = Grammars(self.tokenizer).json_schema({"type": "integer"})
        digits = set(b"0123456789")
        assert self.allowed(b"", grammar) == {*digits, ord("-")}
        assert self.allowed(b"-", grammar) == digits
        assert self.allowed(b"1", grammar) == {*digits, ByteTokenizer.END_ID}

    def test_behind_the_end_only_a_stop_id_is_allowed(self) -> None:
        grammar = Grammars(self.tokenizer).json_schema(ANY_OBJECT)
        constraint = grammar.start()
        for token_id in b"{}":
            assert not constraint.is_complete
            constraint.accept(token_id)
        assert constraint.is_complete
        assert self.allowed(b"{}", grammar) == {ByteTokenizer.END_ID}

    def test_rows_behind_the_tokenizers_vocabulary_are_never_allowed(self) -> None:
        grammar = Grammars(self.tokenizer).json_schema(ANY_OBJECT)
        assert self.allowed(b"", grammar, rows=self.size + 37) == {ord("{")}

    def test_spaces_end(self) -> None:
        grammar = Grammars(self.tokenizer).json_schema(ANY_OBJECT)
        assert self.allowed(b"{\n" + b" " * 12, grammar) == set(b'"}')

    def test_answers_to_one_grammar_do_not_share_their_way(self) -> None:
        grammar = Grammars(self.tokenizer).json_schema(ANY_OBJECT)
        self.allowed(b'{"a', grammar)
        assert self.allowed(b"", grammar) == {ord("{")}

    def test_a_token_that_cannot_follow_is_refused(self) -> None:
        constraint = Grammars(self.tokenizer).json_schema(ANY_OBJECT).start()
        with pytest.raises(RequestError, match="the answer cannot be held to the grammar"):
            constraint.accept(ord("x"))


class Poor(ByteTokenizer):
    """A tokenizer without the letters a and b, which it writes as question marks."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text.translate({ord("a"): "?", ord("b"): "?"}))

    def token_bytes(self, token_id: int) -> bytes:
        return b"" if token_id in (ord("a"), ord("b")) else super().token_bytes(token_id)


@pytest.mark.parametrize("values", [["a"], ["a1", "b2"]])
def test_an_answer_that_the_tokenizer_cannot_write_ends_with_an_error(values: list[str]) -> None:
    grammar = Grammars(Poor()).json_schema({"enum": values})
    with pytest.raises(RequestError, match=r"the answer cannot be held to the grammar: .*; make it simpler"):
        babble(Poor(), grammar, 0)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "object", "contains": 3}, 'Unimplemented keys: \\["contains"\\]'),
        ({"not": {"type": "string"}}, 'Unimplemented keys: \\["not"\\]'),
        ({"type": "frob"}, "Invalid type: frob"),
        ({"type": "string", "format": "foo"}, "Unknown format: foo"),
        ({"type": "string", "pattern": "(?=a)"}, "regex parse error"),
        ({"$ref": "http://example.org/schema"}, "http://example.org/schema"),
        ({"$ref": "#"}, "NoExtension"),
        ({"enum": []}, "anyOf is empty"),
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused_by_name(schema: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=f"the grammar is not supported: .*{message}.*; take out what"):
        Grammars(ByteTokenizer()).json_schema(schema)


@pytest.mark.parametrize("depth", [500, 100_000])
def test_a_schema_of_great_depth_is_refused(depth: int) -> None:
    schema: dict[str, object] = {}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    with pytest.raises(RequestError, match="levels deep, references included; 100 are allowed"):
        Grammars(ByteTokenizer()).json_schema(schema)


def test_a_schema_of_great_length_is_refused() -> None:
    # 5,000 optional properties took 12 s of a processor, and were refused then.
    schema = {"type": "object", "properties": {f"a property {index}": {} for index in range(4000)}}
    with pytest.raises(RequestError, match="characters as JSON; 65536 are allowed"):
        Grammars(ByteTokenizer()).json_schema(schema)


def test_an_engine_that_knows_few_tokens_is_asked_for_no_grammar() -> None:
    engine = FakeEngine(ByteTokenizer().vocabulary_size)
    engine.candidates = 64
    settings = GenerationSettings(
        SamplingSettings(temperature=0), grammar=Grammars(ByteTokenizer()).json_schema(ANY_OBJECT)
    )
    with pytest.raises(RequestError, match="a grammar may allow none of them"):
        check_candidates(engine, settings)
    check_candidates(engine, replace(settings, grammar=None))


def test_a_long_fixed_text_costs_a_step_no_more_than_a_short_one() -> None:
    # All that was left of a text of 27 KB was compared with every length of a token: 0.2 s at each step, in
    # which no other answer got its token.
    tokens = [bytes([byte]) for byte in range(256)] + [b"ab", b"abab", b"x" * 300]
    vocabulary = _Vocabulary([*tokens, b"<end>"], [], len(tokens))
    assert vocabulary(b"cabababx") == [ord("c"), 257, 256, ord("x")]
    assert vocabulary(b"x" * 301) == [258, ord("x")]
    ids = vocabulary(b"ab" * 30_000)
    assert ids[:128] == [257] * 128
    assert b"".join(tokens[token_id] for token_id in ids) == b"ab" * 30_000
    assert len(ids) == 128 + 60_000 - 512
