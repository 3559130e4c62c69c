"""The loop feeds each token once, shows all text once, and always says why it ended."""

from dataclasses import replace

import numpy as np
import pytest

from baichuan2_tpu.errors import BackendError, ContextLengthError, RequestError
from baichuan2_tpu.generate.loop import Event, Result, TextPiece, TokenChosen, generate
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from doubles.fakes import ByteTokenizer, FakeEngine, HistoryEngine, ScriptedEngine

TOKENIZER = ByteTokenizer()
VOCABULARY = TOKENIZER.vocabulary_size
END = TOKENIZER.END_ID
GREEDY = GenerationSettings(sampling=SamplingSettings(temperature=0))


def scripted(answer: bytes, *more_ids: int, max_context: int = 64) -> ScriptedEngine:
    engine = ScriptedEngine(VOCABULARY, max_context=max_context)
    engine.enqueue_ids([*answer, *more_ids])
    return engine


def run(
    engine: FakeEngine, prompt: bytes = b"hi", settings: GenerationSettings = GREEDY
) -> tuple[list[Event], Result]:
    with TrackedSequence(engine) as sequence:
        events = list(generate(sequence, TOKENIZER, list(prompt), settings))
    result = events[-1]
    assert isinstance(result, Result)
    assert "".join(event.text for event in events if isinstance(event, TextPiece)) == result.text
    chosen = tuple(event.token_id for event in events if isinstance(event, TokenChosen))
    assert chosen == result.token_ids
    return events, result


def test_an_answer_ends_at_the_end_token() -> None:
    engine = scripted(b"yes", END)
    _, result = run(engine)
    assert (result.text, result.token_ids, result.finish_reason) == ("yes", tuple(b"yes"), "stop")
    assert engine.fed == [list(b"hi"), [ord("y")], [ord("e")], [ord("s")]]


def test_a_stop_id_of_the_settings_ends_the_answer() -> None:
    _, result = run(scripted(b"yes!"), settings=replace(GREEDY, stop_ids=frozenset({ord("!")})))
    assert (result.text, result.finish_reason) == ("yes", "stop")


def test_a_stop_id_of_the_model_ends_the_answer() -> None:
    engine = scripted(b"yes!")
    engine.config = replace(engine.config, eos_ids=(ord("!"),))
    assert run(engine)[1].text == "yes"


def test_a_stop_string_ends_the_answer_and_is_not_shown() -> None:
    events, result = run(scripted(b"a<end>"), settings=replace(GREEDY, stop=("<end>",)))
    assert [event.text for event in events if isinstance(event, TextPiece)] == ["a"]
    assert (result.text, result.finish_reason) == ("a", "stop")
    assert result.token_ids == tuple(b"a<end>")


def test_text_held_back_is_shown_when_the_answer_ends() -> None:
    _, result = run(scripted(b"a<en", END), settings=replace(GREEDY, stop=("<end>",)))
    assert result.text == "a<en"


def test_a_character_is_shown_when_it_is_whole() -> None:
    events, result = run(scripted("é你".encode(), END))
    assert [event.text for event in events if isinstance(event, TextPiece)] == ["é", "你"]
    assert result.text == "é你"


def test_an_unfinished_character_is_shown_as_replacement_and_can_complete_a_stop_string() -> None:
    assert run(scripted(b"a\xe4", END))[1].text == "a\ufffd"
    settings = replace(GREEDY, stop=("\ufffd",), max_tokens=2)
    result = run(scripted(b"a\xe4"), settings=settings)[1]
    assert (result.text, result.finish_reason) == ("a", "stop")


def test_max_tokens_ends_the_answer_without_feeding_the_last_token() -> None:
    engine = scripted(b"yes")
    _, result = run(engine, settings=replace(GREEDY, max_tokens=2))
    assert (result.text, result.finish_reason) == ("ye", "length")
    assert engine.fed == [list(b"hi"), [ord("y")]]


def test_a_full_context_ends_the_answer() -> None:
    engine = scripted(b"0123456789", max_context=8)
    _, result = run(engine, prompt=b"12345")
    assert (result.text, result.finish_reason) == ("0123", "length")
    assert sum(map(len, engine.fed)) == 8


def test_a_prompt_as_long_as_the_context_still_gets_one_token() -> None:
    assert run(scripted(b"0", max_context=5), prompt=b"12345")[1].text == "0"


def test_a_prompt_that_does_not_fit_names_both_numbers_and_feeds_nothing() -> None:
    engine = scripted(b"", max_context=5)
    with pytest.raises(ContextLengthError, match=r"6 tokens .* holds 5"):
        run(engine, prompt=b"123456")
    assert engine.fed == []


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="prompt is empty"):
        run(scripted(b""), prompt=b"")


def test_a_long_prompt_is_fed_in_pieces_with_logits_for_its_last_token() -> None:
    engine = scripted(b"y", END, max_context=400)
    prompt = bytes(range(200)) + bytes(100)
    run(engine, prompt=prompt)
    assert [len(chunk) for chunk in engine.fed] == [128, 128, 44, 1]
    assert bytes(b"".join(map(bytes, engine.fed[:3]))) == prompt
    assert engine.rows_left == 0


def test_the_engine_says_how_long_a_piece_is() -> None:
    engine = scripted(b"y", END, max_context=400)
    engine.prompt_piece = 256
    run(engine, prompt=bytes(300))
    assert [len(chunk) for chunk in engine.fed] == [256, 44, 1]


def test_progress_counts_what_was_read_of_the_whole_prompt() -> None:
    engine = scripted(b"y", END, max_context=400)
    prompt = list(bytes(300))
    reads: list[tuple[int, int]] = []
    with TrackedSequence(engine) as sequence:
        sequence.feed(prompt[:100], 0)
        list(
            generate(
                sequence, TOKENIZER, prompt, GREEDY, progress=lambda read, total: reads.append((read, total))
            )
        )
    assert reads == [(228, 300), (300, 300)]


@pytest.mark.parametrize(("looks", "text", "fed"), [(0, "", 0), (1, "", 128), (2, "y", 130), (4, "yes", 132)])
def test_cancelling_keeps_what_was_said(looks: int, text: str, fed: int) -> None:
    engine = scripted(b"yes!", max_context=400)
    answers = iter([False] * looks + [True])
    with TrackedSequence(engine) as sequence:
        *_, result = generate(sequence, TOKENIZER, [0] * 130, GREEDY, lambda: next(answers))
        assert len(sequence.ids) == fed
    assert isinstance(result, Result)
    assert (result.text, result.finish_reason) == (text, "cancelled")
    assert result.stats.generated_tokens == len(text)


def test_the_common_beginning_of_two_prompts_is_fed_once() -> None:
    engine = HistoryEngine(VOCABULARY)
    settings = replace(GREEDY, max_tokens=5)
    with TrackedSequence(engine) as sequence:
        list(generate(sequence, TOKENIZER, list(b"abcd"), settings))
        engine.fed.clear()
        *_, reused = generate(sequence, TOKENIZER, list(b"abXY"), settings)
        assert engine.fed[0] == list(b"XY")
    assert isinstance(reused, Result)
    assert reused.stats.reused_tokens == 2
    assert reused.token_ids == run(HistoryEngine(VOCABULARY), b"abXY", settings)[1].token_ids


def test_the_same_prompt_again_feeds_one_token() -> None:
    engine = HistoryEngine(VOCABULARY)
    settings = replace(GREEDY, max_tokens=1)
    with TrackedSequence(engine) as sequence:
        list(generate(sequence, TOKENIZER, list(b"abcd"), settings))
        list(generate(sequence, TOKENIZER, list(b"abcd"), settings))
    assert engine.fed == [list(b"abcd"), list(b"d")]


def test_a_fault_leaves_the_sequence_as_far_as_it_came() -> None:
    engine = HistoryEngine(VOCABULARY)
    settings = replace(GREEDY, max_tokens=8)
    with TrackedSequence(engine) as sequence:
        engine.fail_after = 3
        with pytest.raises(BackendError):
            list(generate(sequence, TOKENIZER, list(b"abcd"), settings))
        assert len(sequence.ids) == 6
        engine.fail_after = None
        *_, result = generate(sequence, TOKENIZER, list(b"abcd"), settings)
    assert isinstance(result, Result)
    assert result.token_ids == run(HistoryEngine(VOCABULARY), b"abcd", settings)[1].token_ids


def test_a_call_interrupted_on_its_way_back_is_undone() -> None:
    """Ctrl-C between the engine's return and our note of it left the sequence one token ahead of us."""
    engine = HistoryEngine(VOCABULARY)
    with TrackedSequence(engine) as sequence:
        sequence.feed(list(b"ab"))
        sequence._ids.pop()
        sequence.keep_prefix(list(b"abc"))
        assert sequence.ids == tuple(b"a")
        sequence.feed(list(b"bc"))
        assert sequence._sequence.length == 3


def test_closing_the_events_early_leaves_the_sequence_usable() -> None:
    engine = scripted(b"yes", *b"no", END)
    with TrackedSequence(engine) as sequence:
        events = generate(sequence, TOKENIZER, list(b"hi"), GREEDY)
        next(events)
        events.close()
        assert sequence.ids == tuple(b"hi")


def test_logits_that_are_no_numbers_never_become_a_token() -> None:
    engine = ScriptedEngine(VOCABULARY)
    engine.enqueue(np.full(VOCABULARY, np.nan, np.float32))
    with pytest.raises(BackendError, match=r"largest logit is nan.*this text overflows the model's numbers"):
        run(engine)


def test_log_probabilities_come_with_each_token() -> None:
    engine = ScriptedEngine(VOCABULARY)
    logits = np.full(VOCABULARY, -np.inf, np.float32)
    logits[[7, 9]] = np.log([0.25, 0.75])
    engine.enqueue(logits)
    events, _ = run(engine, settings=replace(GREEDY, logprobs=2, max_tokens=1))
    chosen = events[0]
    assert isinstance(chosen, TokenChosen)
    assert chosen.logprob == pytest.approx(np.log(0.75), abs=1e-6)
    assert [item.token_id for item in chosen.top_logprobs] == [9, 7]


def test_the_penalty_counts_prompt_and_answer() -> None:
    engine = ScriptedEngine(VOCABULARY)
    logits = np.zeros(VOCABULARY, np.float32)
    logits[[ord("h"), ord("x"), ord("y")]] = [3.0, 2.9, 2.8]
    for _ in range(2):
        engine.enqueue(logits)
    settings = GenerationSettings(SamplingSettings(temperature=0, repetition_penalty=1.2), max_tokens=2)
    assert run(engine, b"hi", settings)[1].text == "xy"


def test_penalties_of_openai_count_the_answer_alone() -> None:
    engine = ScriptedEngine(VOCABULARY)
    logits = np.zeros(VOCABULARY, np.float32)
    logits[[ord("h"), ord("x")]] = [3.0, 2.9]
    for _ in range(3):
        engine.enqueue(logits)
    settings = GenerationSettings(SamplingSettings(temperature=0, frequency_penalty=0.2), max_tokens=3)
    assert run(engine, b"hi", settings)[1].text == "hxh"


def test_a_seed_repeats_an_answer() -> None:
    settings = GenerationSettings(SamplingSettings(seed=4), max_tokens=12)
    first, second = (run(HistoryEngine(VOCABULARY), b"hi", settings)[1] for _ in range(2))
    assert first.token_ids == second.token_ids


def test_stats_count_prompt_and_answer_and_time_them() -> None:
    stats = run(scripted(b"yes", END))[1].stats
    assert (stats.prompt_tokens, stats.reused_tokens, stats.generated_tokens) == (2, 0, 3)
    assert stats.first_token_s is not None
    assert stats.median_token_s is not None
    assert stats.tok_per_s is not None
    assert stats.first_token_s > 0 < stats.median_token_s


def test_stats_of_an_answer_without_tokens_name_no_time() -> None:
    with TrackedSequence(scripted(b"")) as sequence:
        *_, result = generate(sequence, TOKENIZER, list(b"hi"), GREEDY, lambda: True)
    assert isinstance(result, Result)
    assert (result.stats.first_token_s, result.stats.median_token_s, result.stats.tok_per_s) == (None,) * 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_beyond_the_tokenizer_is_never_chosen(temperature: float) -> None:
    # An answer of a model with padded tables died by "token id 407 is not in the vocabulary".
    engine = ScriptedEngine(VOCABULARY + 5)
    for token_id in (*b"ok", END):
        logits = np.full(VOCABULARY + 5, -50, np.float32)
        logits[token_id] = 0
        logits[VOCABULARY:] = 50
        engine.enqueue(logits)
    sampling = SamplingSettings(temperature=temperature, seed=1)
    _, result = run(engine, settings=GenerationSettings(sampling, logprobs=5))
    assert (result.text, result.finish_reason) == ("ok", "stop")


def ending_first() -> ScriptedEngine:
    """Return an engine whose most likely tokens end the answer, and whose next most likely is a letter."""
    engine = ScriptedEngine(VOCABULARY)
    for letter in b"abcdef":
        logits = np.zeros(VOCABULARY, np.float32)
        logits[END], logits[ord("!")], logits[letter] = 9, 8, 7
        engine.enqueue(logits)
    return engine


@pytest.mark.parametrize(
    ("settings", "text", "reason"),
    [
        (replace(GREEDY, min_tokens=2, stop_ids=frozenset(b"!")), "ab", "stop"),
        (replace(GREEDY, ignore_eos=True, max_tokens=4, stop_ids=frozenset(b"!")), "abcd", "length"),
        (replace(GREEDY, ignore_eos=True, own_stop_ids=frozenset(b"!")), "", "stop"),
        (replace(GREEDY, ignore_eos=True, own_stop_ids=frozenset(b"!"), min_tokens=1), "a", "stop"),
    ],
)
def test_an_answer_ends_no_earlier_than_it_may(settings: GenerationSettings, text: str, reason: str) -> None:
    _, result = run(ending_first(), settings=settings)
    assert (result.text, result.finish_reason) == (text, reason)


def test_more_tokens_than_the_limit_cannot_be_demanded() -> None:
    with pytest.raises(RequestError, match="min_tokens is 5; 0 to 4 is allowed"):
        replace(GREEDY, max_tokens=4, min_tokens=5)
