"""An engine that knows only its most likely tokens serves what it can, and refuses the rest by name."""

from dataclasses import replace

import numpy as np
import pytest

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.engine_limits import check_candidates
from baichuan2_tpu.generate.loop import Result, TokenChosen, generate
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from doubles.fakes import ByteTokenizer, ScriptedEngine

TOKENIZER = ByteTokenizer()
VOCABULARY = TOKENIZER.vocabulary_size
GREEDY = SamplingSettings(temperature=0)


def engine_of(candidates: int) -> ScriptedEngine:
    engine = ScriptedEngine(VOCABULARY)
    engine.candidates = candidates
    return engine


def row_of(best: dict[int, float]) -> np.ndarray:
    """Return a row as an engine of few candidates gives it."""
    row = np.full(VOCABULARY, -np.inf, np.float32)
    row[list(best)] = list(best.values())
    return row


def answer(engine: ScriptedEngine, sampling: SamplingSettings, max_tokens: int) -> Result:
    settings = GenerationSettings(sampling, max_tokens=max_tokens)
    with TrackedSequence(engine) as sequence:
        *_, result = generate(sequence, TOKENIZER, list(b"h"), settings)
    assert isinstance(result, Result)
    return result


def test_a_token_head_answers_greedily() -> None:
    engine = ScriptedEngine(VOCABULARY)
    engine.candidates = 1
    for token in b"yes":
        engine.enqueue(row_of({token: 0.0}))
    assert answer(engine, GREEDY, 3).text == "yes"


def test_a_sample_head_draws_among_the_tokens_it_knows() -> None:
    engine = ScriptedEngine(VOCABULARY)
    engine.candidates = 3
    for _ in range(20):
        engine.enqueue(row_of({ord("a"): 1.0, ord("b"): 0.9, ord("c"): 0.8}))
    sampling = SamplingSettings(
        top_k=3,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.05,
        seed=1,
        presence_penalty=0.1,
        frequency_penalty=0.01,
        logit_bias=((ord("a"), -0.5),),
    )
    assert set(answer(engine, sampling, 20).text) == set("abc")


@pytest.mark.parametrize("candidates", [1, 64, VOCABULARY])
@pytest.mark.parametrize("sampling", [GREEDY, SamplingSettings(top_k=1)])
def test_the_likeliest_token_can_always_be_had(candidates: int, sampling: SamplingSettings) -> None:
    engine = engine_of(candidates)
    for token in b"yes":
        engine.enqueue(row_of({token: 0.0}))
    assert answer(engine, sampling, 3).text == "yes"


def test_all_is_allowed_where_all_is_known() -> None:
    engine = engine_of(VOCABULARY)
    engine.enqueue_ids(b"y")
    settings = GenerationSettings(SamplingSettings(repetition_penalty=0.9), max_tokens=1, logprobs=5)
    with TrackedSequence(engine) as sequence:
        first, *_ = generate(sequence, TOKENIZER, list(b"h"), settings)
    assert isinstance(first, TokenChosen)
    assert (first.token_id, len(first.top_logprobs)) == (ord("y"), 5)


@pytest.mark.parametrize(
    ("candidates", "settings", "message"),
    [
        (
            1,
            GenerationSettings(SamplingSettings(top_k=5)),
            "most likely token of each step: it cannot sample;",
        ),
        (
            1,
            GenerationSettings(replace(GREEDY, repetition_penalty=1.05)),
            "repetition_penalty 1.05 has no other",
        ),
        (1, GenerationSettings(GREEDY, logprobs=0), "log probabilities need all of them"),
        (
            64,
            GenerationSettings(),
            "64 tokens of each step: sampling with top_k 0 needs others; use top_k 1",
        ),
        (64, GenerationSettings(SamplingSettings(top_k=65)), "sampling with top_k 65 needs others"),
        (64, GenerationSettings(GREEDY, logprobs=2), "log probabilities need all of them"),
        (64, GenerationSettings(GREEDY, prompt_logprobs=0), "log probabilities need all of them"),
        (
            64,
            GenerationSettings(replace(GREEDY, repetition_penalty=0.9)),
            "repetition_penalty 0.9 could lift another",
        ),
        (1, GenerationSettings(replace(GREEDY, presence_penalty=1)), "presence_penalty 1 has no other"),
        (1, GenerationSettings(replace(GREEDY, logit_bias=((7, -1),))), "token 7 -1 has no other"),
        (64, GenerationSettings(replace(GREEDY, frequency_penalty=-1)), "frequency_penalty -1 could lift"),
        (64, GenerationSettings(replace(GREEDY, logit_bias=((7, 0.5),))), "token 7 0.5 could lift another"),
    ],
)
def test_what_needs_other_tokens_is_refused(
    candidates: int, settings: GenerationSettings, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        check_candidates(engine_of(candidates), settings)


def test_a_refusal_comes_before_the_prompt_is_fed() -> None:
    engine = engine_of(1)
    with TrackedSequence(engine) as sequence, pytest.raises(RequestError, match="engine fake knows only"):
        next(generate(sequence, TOKENIZER, list(b"h"), GenerationSettings()))
    assert engine.fed == []


@pytest.mark.parametrize("token_id", [-1, VOCABULARY])
def test_a_bias_of_an_unknown_token_is_refused(token_id: int) -> None:
    settings = GenerationSettings(replace(GREEDY, logit_bias=((token_id, 1),)))
    with pytest.raises(RequestError, match=f"logit_bias names token {token_id}; 0 to {VOCABULARY - 1} are"):
        check_candidates(engine_of(VOCABULARY), settings)
