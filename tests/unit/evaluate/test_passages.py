"""Passages that differ in their last token are read once; a row is judged by the token that follows."""

import math

import numpy as np
import pytest

from baichuan2_tpu.evaluate.passages import Passage, PassageScore, RowCollector, readings_of
from doubles.fakes import one_hot


def test_choices_of_one_token_are_one_reading() -> None:
    passages = [Passage((5, 6, letter), 2) for letter in (1, 2, 3, 4)]
    (reading,) = readings_of(passages)
    assert (reading.ids, reading.first, reading.places) == ((5, 6), 2, (0, 1, 2, 3))


def test_equal_beginnings_stand_next_to_each_other() -> None:
    passages = [Passage(ids, 1) for ids in ((9, 1, 1), (2, 7, 1), (9, 1, 0, 1), (2, 6, 1))]
    assert [reading.places for reading in readings_of(passages)] == [(3,), (1,), (0,), (2,)]


def test_the_same_tokens_scored_from_elsewhere_are_another_reading() -> None:
    assert len(readings_of([Passage((5, 6, 7, 8), 2), Passage((5, 6, 7, 8), 3)])) == 2


@pytest.mark.parametrize(("start", "stop", "rows"), [(0, 3, 0), (0, 4, 1), (2, 6, 3), (4, 6, 2)])
def test_rows_are_wanted_from_the_one_before_the_first_scored_token(start: int, stop: int, rows: int) -> None:
    (reading,) = readings_of([Passage((1,) * 7, 4)])
    assert reading.rows_until(start, stop) == rows


def test_a_row_is_judged_by_the_token_that_follows() -> None:
    passages = [Passage((3, 1, 4, 1), 2), Passage((3, 1, 4, 0), 2)]
    (reading,) = readings_of(passages)
    collector = RowCollector(reading, passages)
    collector.take(one_hot(4, 8)[None])
    collector.take(one_hot(1, 8)[None])
    scores: dict[int, PassageScore] = {}
    collector.put(scores)
    assert scores[0].loss == pytest.approx(0.0)
    assert scores[1].losses == pytest.approx([0.0, 100.0])
    assert [scores[place].is_greedy(passages[place]) for place in (0, 1)] == [True, False]


def test_equally_likely_tokens_lose_the_logarithm_of_their_number() -> None:
    passages = [Passage((1, 2, 3), 1)]
    collector = RowCollector(readings_of(passages)[0], passages)
    collector.take(np.full((2, 1000), 7.5, np.float32))
    scores: dict[int, PassageScore] = {}
    collector.put(scores)
    assert scores[0].losses == pytest.approx([math.log(1000)] * 2)
