"""No request ever sees another one's state, whatever is asked, cancelled or late, and none is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from doubles.fakes import ByteTokenizer, HistoryEngine, RowEngine
from schedules.interleaving import Course, check_course, courses

TOKENIZER = ByteTokenizer()
CONTEXT = 130  # more than two blocks of memory


def new_engine(max_sequences: int = 1) -> HistoryEngine:
    return HistoryEngine(TOKENIZER.vocabulary_size, max_context=CONTEXT, max_sequences=max_sequences)


@given(courses(CONTEXT), st.integers(1, 6))
def test_answers_are_those_of_an_engine_for_each_request(course: Course, max_sequences: int) -> None:
    engine = new_engine(max_sequences)
    check_course(course, engine, new_engine, TOKENIZER)
    assert engine.open_sequences == 0


@given(courses(CONTEXT), st.integers(1, 6), st.integers(CONTEXT, 3 * CONTEXT))
def test_answers_that_share_rows_are_those_of_an_engine_for_each_and_never_lack_a_row(
    course: Course, max_sequences: int, rows: int
) -> None:
    engine = RowEngine(TOKENIZER.vocabulary_size, rows, max_context=CONTEXT, max_sequences=max_sequences)
    check_course(course, engine, new_engine, TOKENIZER)
    assert engine.row_use.used == 0
