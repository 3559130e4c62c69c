"""Nothing that a model writes can act on the terminal."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baichuan2_tpu.cli.line_editor import read_message
from baichuan2_tpu.cli.terminal import notice, printable, progress_bar, reading_line, write_result


@given(st.text())
def test_no_control_character_is_left_but_line_feed_and_tab(text: str) -> None:
    controls = {chr(code) for code in (*range(0x20), *range(0x7F, 0xA0))} - {"\n", "\t"}
    shown = printable(text)
    assert not controls & set(shown)
    assert shown == "".join(one for one in text if one not in controls)


def test_escape_sequence_becomes_plain_text(capsys: pytest.CaptureFixture[str]) -> None:
    write_result("a\x1b]0;title\x07b\r\n\x9b2J")
    notice("c\x1b[2J")
    assert capsys.readouterr() == ("a]0;titleb\n2J", "c[2J\n")


def test_progress_is_drawn_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("working") as progress:
        assert progress is None
    assert capsys.readouterr().err == ""


def test_reading_is_drawn_on_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    with reading_line() as draw:
        assert draw is None
    assert capsys.readouterr().err == ""


def test_reading_a_long_prompt_is_drawn_and_wiped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with reading_line() as draw:
        assert draw is not None
        for read_tokens in (128, 1152, 1973):
            draw(read_tokens, 1973)
        assert capsys.readouterr().err == f"\rreading 128/1973\rreading 1152/1973\r{' ' * 17}\r"
    assert capsys.readouterr().err == ""


def test_a_prompt_that_is_read_at_once_draws_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with reading_line() as draw:
        assert draw is not None
        draw(38, 38)
    assert capsys.readouterr().err == ""


def test_reading_that_ends_early_leaves_no_line_behind(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with reading_line() as draw:
        assert draw is not None
        draw(128, 300)
    assert capsys.readouterr().err == f"\rreading 128/300\r{' ' * 15}\r"


@pytest.mark.parametrize(
    ("lines", "message"),
    [(["one"], "one"), (["one\\", "two"], "one\ntwo"), (["one\\", "\\", "two"], "one\n\ntwo"), ([""], "")],
)
def test_trailing_backslash_continues_a_message(lines: list[str], message: str) -> None:
    left = iter(lines)
    prompts: list[str] = []

    def read_line(prompt: str) -> str:
        prompts.append(prompt)
        return next(left)

    assert read_message(read_line) == message
    assert prompts == ["> ", *["… "] * (len(lines) - 1)]
