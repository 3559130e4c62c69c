"""A user's text is read alike by everything that takes one: from a file, or from standard input."""

import io
import sys
from pathlib import Path

import pytest

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.text.user_text import read_user_text, user_text_name


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    # evaluate and generate took it for text, and quantize did not.
    path = tmp_path / "notes.txt"
    path.write_bytes(b"\xef\xbb\xbf\xe4\xbd\xa0\n")
    assert read_user_text(path) == "你\n"
    assert user_text_name(path) == str(path)


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    # quantize --calibration - looked for a file of that name.
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeff你".encode())))
    assert read_user_text(Path("-")) == "你"
    assert user_text_name(Path("-")) == "standard input"


def test_what_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        RequestError, match=r"cannot read .*absent\.txt: No such file or directory; name a text"
    ):
        read_user_text(tmp_path / "absent.txt")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    with pytest.raises(RequestError, match="standard input is not UTF-8 at byte 2; convert it first"):
        read_user_text(Path("-"))
