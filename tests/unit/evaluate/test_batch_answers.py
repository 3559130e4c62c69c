"""Questions answered together get the answers they get alone."""

import pytest

from baichuan2_tpu.errors import ContextLengthError, RequestError
from baichuan2_tpu.evaluate.batch_answers import Question, answer_questions
from baichuan2_tpu.generate.loop import Result, generate
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from doubles.fakes import ByteTokenizer, HistoryEngine

TOKENIZER = ByteTokenizer()


def engine(**settings: int) -> HistoryEngine:
    return HistoryEngine(TOKENIZER.vocabulary_size, **settings)


def question(text: str, max_tokens: int = 6, **settings: object) -> Question:
    greedy = SamplingSettings(temperature=0)
    return Question(
        tuple(TOKENIZER.encode(text)),
        GenerationSettings(sampling=greedy, max_tokens=max_tokens, **settings),  # pyright: ignore[reportArgumentType] - fields of the settings
    )


def alone(one: Question) -> str:
    with TrackedSequence(engine()) as sequence:
        *_, last = generate(sequence, TOKENIZER, one.ids, one.settings)
    assert isinstance(last, Result)
    return last.text


@pytest.mark.parametrize("max_sequences", [1, 2, 9])
@pytest.mark.parametrize("prompt_piece", [2, 128])
def test_answers_are_those_of_asking_alone(max_sequences: int, prompt_piece: int) -> None:
    questions = [
        question(text, 1 + number) for number, text in enumerate(["who?", "whom?", "why", "who", "b"])
    ]
    shared = engine(max_sequences=max_sequences)
    shared.prompt_piece = prompt_piece
    assert answer_questions(shared, TOKENIZER, questions) == [alone(one) for one in questions]
    assert shared.open_sequences == 0


def test_an_answer_ends_at_its_stop_string_or_the_end_of_the_context() -> None:
    whole = alone(question("who?", 12))
    stop = whole[3:5]
    stopped, cut = answer_questions(
        engine(max_context=8), TOKENIZER, [question("who?", 12, stop=(stop,)), question("who", 50)]
    )
    assert stopped == whole[: whole.index(stop)]
    assert len(TOKENIZER.encode(cut)) >= 1


def test_questions_that_begin_alike_go_on_from_what_is_held() -> None:
    one_at_a_time = engine(max_sequences=1)
    answer_questions(one_at_a_time, TOKENIZER, [question("examples A", 1), question("examples B", 1)])
    assert [len(ids) for ids in one_at_a_time.fed] == [10, 1]


def test_progress_ends_with_all_of_them() -> None:
    seen: list[tuple[int, int]] = []
    questions = [question("a", 2), question("b", 3)]
    answer_questions(engine(), TOKENIZER, questions, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (2, 2)


@pytest.mark.parametrize(
    ("text", "error"), [("", RequestError), ("more than the context holds", ContextLengthError)]
)
def test_a_question_that_cannot_be_asked_is_refused_before_any_work(
    text: str, error: type[Exception]
) -> None:
    small = engine(max_context=8)
    with pytest.raises(error):
        answer_questions(small, TOKENIZER, [question("a"), question(text)])
    assert small.fed == []
