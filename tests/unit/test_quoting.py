"""Whatever a stranger's value is, a message with it is short and obeys nobody."""

import pytest

from baichuan2_tpu.errors import Baichuan2Error, RequestError
from baichuan2_tpu.quoting import escape_controls, quote, shorten


def test_a_short_text_stays_and_a_long_one_says_its_length() -> None:
    assert shorten("short") == "short"
    assert shorten("a" * 80) == "a" * 80
    assert shorten("a" * 1000 + "b" * 1000) == f"{'a' * 28}… 2000 characters …{'b' * 28}"


LONG = ["x" * 10**6, b"\xff" * 10**6, "\n" * 10**5, 10**5000, "\U0010fffe" * 999]


@pytest.mark.parametrize("value", LONG, ids=["text", "bytes", "lines", "digits", "no characters"])
def test_a_quoted_value_is_one_short_line(value: str | bytes | int) -> None:
    written = quote(value)
    assert len(written) < 700  # an escape takes ten characters
    assert written.isprintable()


def test_a_plain_value_is_quoted_as_python_writes_it() -> None:
    assert [quote("a'b"), quote(3), quote(0.5), quote(b"\x00")] == ['"a\'b"', "3", "0.5", "b'\\x00'"]


def test_what_a_terminal_would_obey_is_escaped_and_lines_stay() -> None:
    assert escape_controls("a\x1b[2J\r\u202e\u2028b\n你好") == "a\\x1b[2J\\r\\u202e\\u2028b\n你好"


def test_every_error_of_ours_is_bounded_and_escaped() -> None:
    """A value of 3 MB stood in the answer that refused it."""
    assert len(str(RequestError("x" * 10**6))) <= 2000
    assert str(Baichuan2Error("\x07")) == "\\x07"
