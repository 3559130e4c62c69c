"""No part of a stop string is ever shown, wherever the stream is cut."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.generate.stops import StopStrings


def run(stops: list[str], pieces: list[str]) -> tuple[list[str], str | None]:
    """Return what is shown at each push and at the end, and the stop string found."""
    stream = StopStrings(stops)
    shown: list[str] = []
    for piece in pieces:
        shown.append(stream.push(piece))
        if stream.matched is not None:
            return shown, stream.matched
    return [*shown, stream.flush()], None


def test_a_stop_string_across_pieces_never_leaks_its_half() -> None:
    assert run(["STOP"], ["a S", "TO", "P b"]) == (["a ", "", ""], "STOP")


def test_text_held_back_is_released_when_it_is_no_stop_string() -> None:
    assert run(["STOP"], ["ST", "OAT"]) == (["", "STOAT", ""], None)


def test_the_end_of_held_text_may_begin_another_stop_string() -> None:
    assert run(["aab"], ["aa", "a", "b"]) == (["", "a", ""], "aab")


def test_text_held_back_is_released_at_the_end() -> None:
    assert run(["STOP"], ["a", "ST"]) == (["a", "", "ST"], None)


def test_without_stop_strings_everything_is_shown_at_once() -> None:
    assert run([], ["a", "b"]) == (["a", "b", ""], None)


@pytest.mark.parametrize(
    ("stops", "text", "shown", "matched"),
    [
        (["END", "STOP"], "a STOP b END", "a ", "STOP"),
        (["bc", "abcd"], "abcd", "a", "bc"),
        (["c", "abc"], "abc", "", "abc"),
    ],
)
def test_the_stop_string_that_is_complete_first_wins(
    stops: list[str], text: str, shown: str, matched: str
) -> None:
    for pieces in ([text], list(text)):
        found, stop = run(stops, pieces)
        assert ("".join(found), stop) == (shown, matched)


letters = st.text("ab", max_size=12)


@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), pieces=st.lists(letters, max_size=8)
)
def test_the_text_does_not_depend_on_the_cuts(stops: list[str], pieces: list[str]) -> None:
    shown, matched = run(stops, pieces)
    whole, whole_matched = run(stops, ["".join(pieces)])
    assert ("".join(shown), matched) == ("".join(whole), whole_matched)
    assert not any(stop in "".join(shown) for stop in stops)
