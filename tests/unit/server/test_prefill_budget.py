"""Prompts get what an allowed pause leaves them, and share it so that none waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.server.scheduling.prefill_budget import PrefillBudget, deal_tokens


def test_without_answers_that_wait_a_prompt_has_the_engines_own_piece() -> None:
    assert PrefillBudget(128, 0.5).tokens(is_answering=False) == 128


def test_beside_answers_the_first_piece_is_small() -> None:
    assert PrefillBudget(128, 0.5).tokens(is_answering=True) == 16


@pytest.mark.parametrize(
    ("token_s", "tokens"), [(1 / 64, 32), (1 / 160, 80), (1 / 1024, 128), (0.2, 16), (0, 128)]
)
def test_the_piece_is_what_takes_the_allowed_pause(token_s: float, tokens: int) -> None:
    budget = PrefillBudget(128, 0.5)
    budget.learn(0, 0.25)
    for _ in range(3):
        fed = budget.tokens(is_answering=True)
        budget.learn(fed, 0.25 + token_s * fed)
    assert budget.tokens(is_answering=True) == tokens


def test_one_slow_step_of_answers_does_not_lift_the_piece_to_the_sky() -> None:
    budget = PrefillBudget(1024, 0.5)
    budget.learn(0, 5)
    budget.learn(16, 0.5)
    assert budget.tokens(is_answering=True) == 32


@pytest.mark.parametrize(
    ("budget", "needs", "given_"),
    [
        (16, [100], [16]),
        (16, [5], [5]),
        (16, [100, 100], [16, 0]),  # of equal ones, the oldest
        (16, [100, 4], [12, 4]),  # a short one passes a long one
        (16, [100, 20], [8, 8]),
        (16, [3, 100, 4], [3, 9, 4]),
        (16, [], []),
    ],
)
def test_the_shortest_and_the_oldest_share(budget: int, needs: list[int], given_: list[int]) -> None:
    assert deal_tokens(budget, needs) == given_


@given(st.integers(1, 200), st.lists(st.integers(1, 300), min_size=1))
def test_everything_is_dealt_and_the_oldest_always_has_a_part(budget: int, needs: list[int]) -> None:
    dealt = deal_tokens(budget, needs)
    assert sum(dealt) == min(budget, sum(needs))
    assert all(0 <= given_ <= need for given_, need in zip(dealt, needs, strict=True))
    assert dealt[0] > 0
