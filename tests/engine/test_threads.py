"""The thread pool shares its work by what each thread gets done, counted and never timed."""

from __future__ import annotations

import pytest

from baichuan2_tpu import _native


@pytest.mark.parametrize("held", [0, 1, 2])
@pytest.mark.parametrize(("count", "grain"), [(64, 1), (100, 7), (48, 16)])
def test_a_thread_that_is_taken_away_holds_up_one_piece_and_no_more(
    held: int, count: int, grain: int
) -> None:
    """Work that is split beforehand waits for all of a held thread's share."""
    pieces, loops = -(-count // grain), 5
    done = _native.count_pieces(3, count, grain, held, loops)
    assert done[held] == loops
    assert sum(done) == loops * pieces


def test_many_threads_on_few_cores_do_every_piece_once() -> None:
    done = _native.count_pieces(16, 1000, 3, 5, 20)
    assert done[5] == 20
    assert sum(done) == 20 * 334
