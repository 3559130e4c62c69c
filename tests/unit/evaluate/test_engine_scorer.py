"""Scores are those of reading every passage alone, however beginnings are shared and ends are batched."""

from collections.abc import Sequence

import numpy as np
import pytest

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.errors import ContextLengthError, RequestError
from baichuan2_tpu.evaluate import EngineScorer, Perplexity, ScoredText
from baichuan2_tpu.evaluate.passages import Passage, PassageScore
from doubles.fakes import FakeEngine, HistoryEngine

VOCABULARY = 40


class UniformEngine(FakeEngine):
    """Finds every token equally likely."""

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        return np.zeros(self.config.vocabulary_size, np.float32)


def alone(engine: HistoryEngine, passage: Passage) -> PassageScore:
    """Score a passage by the definition: one chunk, all rows."""
    with engine.open_sequence() as sequence:
        rows = engine.forward([Chunk(sequence, passage.tokens, len(passage.tokens))])[0].astype(np.float64)
    rows = rows[passage.first - 1 : -1]
    targets = list(passage.tokens[passage.first :])
    losses = np.log(np.exp(rows).sum(axis=1)) - rows[np.arange(len(rows)), targets]
    return PassageScore(losses, rows.argmax(axis=1))


def check(engine: HistoryEngine, passages: list[Passage]) -> None:
    found = EngineScorer(engine).score(passages)
    assert engine.open_sequences == 0
    for passage, score in zip(passages, found, strict=True):
        expected = alone(engine, passage)
        np.testing.assert_allclose(score.losses, expected.losses, rtol=1e-5)
        assert score.best.tolist() == expected.best.tolist()


def choices(context: tuple[int, ...], *ends: tuple[int, ...]) -> list[Passage]:
    return [Passage((*context, *end), len(context)) for end in ends]


def test_uniform_logits_have_the_vocabulary_as_perplexity() -> None:
    engine = UniformEngine(VOCABULARY)
    text = ScoredText("numbers", tuple(n % VOCABULARY for n in range(200)), 32, 8)
    found = Perplexity.of(EngineScorer(engine).score(text.passages()))
    assert found.value == pytest.approx(VOCABULARY)
    assert found.scored_tokens == 199


@pytest.mark.parametrize("can_copy", [True, False])
@pytest.mark.parametrize("prompt_piece", [3, 16, 128])
def test_scores_do_not_depend_on_what_is_shared(can_copy: bool, prompt_piece: int) -> None:
    engine = HistoryEngine(VOCABULARY, max_sequences=3)
    engine.can_copy, engine.prompt_piece = can_copy, prompt_piece
    context, other = tuple(range(20)), (*range(10), 30, 31, 32)
    passages = [
        *choices(context, (1,), (2,), (3, 4), (3, 5, 6)),
        *choices(other, (7,), (8, 9)),
        *choices((5,), (6,), (7, 8)),
        Passage(tuple(range(39)), 1),
    ]
    check(engine, passages)


def test_a_window_longer_than_the_rows_taken_at_once_is_scored_whole() -> None:
    engine = HistoryEngine(VOCABULARY, max_context=256)
    check(engine, [Passage(tuple(n * 7 % VOCABULARY for n in range(200)), 3)])


def test_choices_of_one_token_are_read_once_and_the_question_before_them_too() -> None:
    engine = HistoryEngine(VOCABULARY)
    context = tuple(range(20))
    EngineScorer(engine).score(choices(context, (1,), (2,), (3,), (4,)))
    assert [len(ids) for ids in engine.fed] == [19, 1]


def test_ends_of_one_question_are_read_in_one_call() -> None:
    engine = HistoryEngine(VOCABULARY)
    context = tuple(range(20))
    EngineScorer(engine).score(choices(context, (1, 1), (2, 2), (3, 3), (4, 4, 4)))
    # The question but for its last token once; then each choice with it, in one batch.
    assert [len(ids) for ids in engine.fed] == [19, 2, 2, 2, 3]


def test_questions_with_the_same_examples_read_these_once() -> None:
    engine = HistoryEngine(VOCABULARY, max_context=64)
    engine.can_copy = False
    examples = tuple(range(30))
    EngineScorer(engine).score([*choices((*examples, 31), (1,)), *choices((*examples, 32), (1,))])
    assert [len(ids) for ids in engine.fed] == [30, 1, 1]


def test_progress_ends_with_all_of_them() -> None:
    seen: list[tuple[int, int]] = []
    passages = [*choices((1, 2), (3,), (4,)), *choices(tuple(range(30)), (5,))]
    EngineScorer(HistoryEngine(VOCABULARY)).score(passages, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)
    assert seen == sorted(seen)


def test_a_passage_longer_than_the_context_is_refused_before_any_work() -> None:
    engine = HistoryEngine(VOCABULARY, max_context=8)
    fitting = Passage(tuple(range(9)), 1)  # its last token is not read
    with pytest.raises(ContextLengthError, match="9 tokens do not fit: the context holds 8"):
        EngineScorer(engine).score([fitting, Passage(tuple(range(10)), 1)])
    assert engine.fed == []
    assert len(EngineScorer(engine).score([fitting])) == 1


@pytest.mark.parametrize(
    ("candidates", "known"), [(1, "the most likely token of"), (16, "the most likely 16 tokens of")]
)
def test_an_engine_that_does_not_know_every_logit_is_refused(candidates: int, known: str) -> None:
    engine = HistoryEngine(VOCABULARY)
    engine.candidates = candidates
    with pytest.raises(RequestError, match=f"engine fake knows only {known} each step.*--head-output logits"):
        EngineScorer(engine).score([Passage((1, 2), 1)])
    assert engine.fed == []
