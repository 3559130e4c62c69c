"""The tokens of a prompt get the log probabilities that the model gave them, a bounded piece at a time."""

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.generate.answer import SCORED_ROWS, Answer
from baichuan2_tpu.generate.events import Event, PromptScored, Result, TokenChosen
from baichuan2_tpu.generate.loop import generate
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from doubles.fakes import ByteTokenizer, HistoryEngine

TOKENIZER = ByteTokenizer()
VOCABULARY = TOKENIZER.vocabulary_size
GREEDY = SamplingSettings(temperature=0)


def defined(engine: HistoryEngine, prompt: bytes) -> list[NDArray[np.float64]]:
    """Return the log probabilities of all tokens behind each token of the prompt."""
    rows = [engine.logits(prompt[: end + 1]).astype(np.float64) for end in range(len(prompt))]
    return [row - np.log(np.exp(row).sum()) for row in rows]


def run(
    engine: HistoryEngine, prompt: bytes, settings: GenerationSettings, kept: bytes = b""
) -> tuple[list[Event], PromptScored]:
    with TrackedSequence(engine) as sequence:
        if kept:
            sequence.feed(list(kept))
        events = list(generate(sequence, TOKENIZER, list(prompt), settings))
    (scored,) = [event for event in events if isinstance(event, PromptScored)]
    assert events[0] is scored
    return events, scored


@pytest.mark.parametrize("length", [1, 2, SCORED_ROWS, SCORED_ROWS + 1, 3 * SCORED_ROWS - 1])
@pytest.mark.parametrize("prompt_piece", [7, 1000])
def test_a_prompt_of_any_length_is_scored_as_defined(length: int, prompt_piece: int) -> None:
    engine = HistoryEngine(VOCABULARY, max_context=256)
    engine.prompt_piece = prompt_piece
    prompt = np.random.default_rng(length).integers(0, 256, length).astype(np.uint8).tobytes()
    settings = GenerationSettings(GREEDY, max_tokens=2, prompt_logprobs=3)
    _, scored = run(engine, prompt, settings)
    assert [token.token_id for token in scored.tokens] == list(prompt)
    assert scored.tokens[0] == TokenChosen(prompt[0])
    for token, row in zip(scored.tokens[1:], defined(engine, prompt), strict=False):
        assert token.logprob == pytest.approx(row[token.token_id], abs=1e-5)
        assert [top.token_id for top in token.top_logprobs] == np.argsort(-row, kind="stable")[:3].tolist()
    assert max(map(len, engine.fed)) <= SCORED_ROWS


def test_what_is_held_of_the_prompt_is_fed_again_to_be_scored() -> None:
    engine = HistoryEngine(VOCABULARY)
    settings = GenerationSettings(GREEDY, max_tokens=2, prompt_logprobs=0)
    events, scored = run(engine, b"hello", settings, kept=b"hell")
    assert scored == run(HistoryEngine(VOCABULARY), b"hello", settings)[1]
    assert isinstance(events[-1], Result)
    assert events[-1].stats.reused_tokens == 0


def test_the_answer_behind_a_scored_prompt_is_the_same_as_without() -> None:
    with_scores = GenerationSettings(GREEDY, max_tokens=8, prompt_logprobs=0)
    without = GenerationSettings(GREEDY, max_tokens=8)
    (*_, first), _ = run(HistoryEngine(VOCABULARY), b"hello", with_scores)
    with TrackedSequence(HistoryEngine(VOCABULARY)) as sequence:
        *_, second = generate(sequence, TOKENIZER, list(b"hello"), without)
    assert isinstance(first, Result)
    assert isinstance(second, Result)
    assert first.token_ids == second.token_ids


def test_a_prompt_can_be_scored_without_an_answer() -> None:
    settings = GenerationSettings(GREEDY, max_tokens=0, prompt_logprobs=0)
    events, scored = run(HistoryEngine(VOCABULARY), b"hi", settings)
    assert len(scored.tokens) == 2
    result = events[-1]
    assert isinstance(result, Result)
    assert (events[1:], result.token_ids, result.finish_reason) == ([result], (), "length")
    assert result.stats.first_token_s is None


def test_a_prompt_can_be_cancelled_while_it_is_scored() -> None:
    engine = HistoryEngine(VOCABULARY)
    engine.prompt_piece = 2
    settings = GenerationSettings(GREEDY, prompt_logprobs=0)
    with TrackedSequence(engine) as sequence:
        (result,) = generate(sequence, TOKENIZER, list(b"hello"), settings, lambda: len(engine.fed) == 1)
    assert isinstance(result, Result)
    assert result.finish_reason == "cancelled"


def test_rows_that_were_taken_before_are_passed_over() -> None:
    engine, prompt = HistoryEngine(VOCABULARY), b"hello"
    rows = np.array([engine.logits(prompt[: end + 1]) for end in range(len(prompt))])
    settings = GenerationSettings(GREEDY, prompt_logprobs=0)
    once, twice = (
        Answer(TOKENIZER, list(prompt), settings, eos_ids=(), max_context=64, clock_s=lambda: 0.0)
        for _ in range(2)
    )
    assert twice.score(rows[:3], 0) is None
    assert twice.reusable_ids == list(b"hell")
    assert twice.score(rows[1:], 1) == once.score(rows, 0)
    assert not twice.is_scoring
    assert twice.reusable_ids == list(prompt)
