"""A text is cut so that every token counts once, and a text that cannot be scored is refused with numbers."""

from itertools import pairwise

import pytest

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.evaluate import ScoredText, language_reference
from baichuan2_tpu.evaluate.scored_text import check_same_cut, cut
from doubles.fakes import ByteTokenizer


def text(length: int, window: int, stride: int) -> ScoredText:
    return ScoredText("a text", tuple(range(length)), window, stride)


@pytest.mark.parametrize("length", [2, 7, 8, 9, 23, 24, 25])
@pytest.mark.parametrize(("window", "stride"), [(8, 4), (8, 1), (8, 7), (2, 1)])
def test_overlapping_windows_score_every_token_but_the_first_once(
    length: int, window: int, stride: int
) -> None:
    # The tokens are numbered, so what is scored can be read off.
    passages = text(length, window, stride).passages()
    assert [token for one in passages for token in one.tokens[one.first :]] == list(range(1, length))
    assert max(len(one.tokens) for one in passages) == min(length, window)


def test_windows_without_overlap_leave_out_the_first_token_of_each() -> None:
    passages = text(24, 8, 8).passages()
    assert [(one.tokens[0], one.first, len(one.tokens)) for one in passages] == [
        (0, 1, 8),
        (8, 1, 8),
        (16, 1, 8),
    ]


def test_the_last_window_is_moved_back_to_be_whole() -> None:
    *_, last = text(21, 8, 8).passages()
    assert (last.tokens, last.first) == (tuple(range(13, 21)), 3)


def test_a_text_shorter_than_a_window_is_one_window() -> None:
    (only,) = text(5, 8, 8).passages()
    assert (only.tokens, only.first) == ((0, 1, 2, 3, 4), 1)


def test_a_stride_of_all_but_one_gives_each_window_one_token_of_past() -> None:
    # As lm-evaluation-harness cuts a document.
    passages = list(cut(range(10), 5, 4))
    assert [(one.tokens, one.first) for one in passages] == [
        ((0, 1, 2, 3, 4), 1),
        ((4, 5, 6, 7, 8), 1),
        ((5, 6, 7, 8, 9), 4),
    ]
    assert [two.tokens[0] - one.tokens[0] for one, two in pairwise(passages)] == [4, 1]


@pytest.mark.parametrize(
    ("length", "window", "stride", "complaint"),
    [
        (9, 1, 1, "a window is 1 tokens; 2 or more are allowed"),
        (9, 8, 9, "the stride is 9 tokens; 1 to 8, the window, are allowed"),
        (9, 8, 0, "the stride is 0 tokens; 1 to 8, the window, are allowed"),
        (1, 8, 8, "a text has 1 tokens; 2 or more are needed"),
    ],
)
def test_what_cannot_be_scored_is_refused(length: int, window: int, stride: int, complaint: str) -> None:
    with pytest.raises(RequestError, match=complaint):
        text(length, window, stride)


def test_a_limit_cuts_the_text_and_may_not_exceed_it() -> None:
    found = ScoredText.of("notes", "0123456789", ByteTokenizer(), limit=4, window=8, stride=None)
    assert (found.tokens, found.stride) == (tuple(b"0123"), 8)
    with pytest.raises(RequestError, match="notes has 10 tokens, 11 were asked for; lower --tokens"):
        ScoredText.of("notes", "0123456789", ByteTokenizer(), limit=11, window=8, stride=None)


def test_the_digest_tells_tokens_apart_and_not_how_they_are_cut() -> None:
    assert text(9, 8, 8).sha256 == text(9, 4, 2).sha256 != text(8, 8, 8).sha256


@pytest.mark.parametrize(
    ("tokens", "seen"), [((0, 1, 7, 3), "differs from token 2 on"), ((0, 1, 2), "ends elsewhere")]
)
def test_another_tokenizer_is_refused_with_the_place(tokens: tuple[int, ...], seen: str) -> None:
    other = ScoredText("a text", tokens, 8, 8)
    with pytest.raises(RequestError, match=f"b has another tokenizer: a text {seen}, so perplexities"):
        check_same_cut(text(4, 8, 8), other, "b")


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (8, 4)])
def test_other_windows_are_refused(window: int, stride: int) -> None:
    # Perplexities of windows of 256 and of 512 tokens were compared: a rise of -99.9 %.
    complaint = f"b has a text in windows of {window} tokens, stride {stride}, and the first model in"
    with pytest.raises(RequestError, match=complaint):
        check_same_cut(text(9, 8, 8), text(9, window, stride), "b")


def test_pythons_language_reference_is_there() -> None:
    name, prose = language_reference()
    assert name.startswith("the language reference of Python 3.")
    assert len(prose) > 100_000
