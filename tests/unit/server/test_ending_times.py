"""The times of a server's end, and that nothing of it outlasts it."""

import threading

from baichuan2_tpu.server.transport.ending import Ending


def test_nothing_of_an_end_runs_behind_it() -> None:
    # Its thread was still there when the interpreter ended, which then could not free what it held.
    with Ending(60) as ending:
        ending.begin()
        assert "end" in {thread.name for thread in threading.enumerate()}
    assert "end" not in {thread.name for thread in threading.enumerate()}


def test_the_moments_of_an_end_come_one_after_the_other_and_within_the_grace() -> None:
    for grace_s in (0, 0.5, 1, 4, 30, 3600):
        ending = Ending(grace_s)
        assert 0 < ending.answers_s < ending.connections_s < ending.force_s < max(grace_s, 1)
