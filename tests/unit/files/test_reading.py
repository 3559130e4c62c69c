"""Reading JSON files: what is wrong with one is said with its name and the next step."""

import os
from pathlib import Path

import pytest

from baichuan2_tpu.errors import CheckpointError, FetchError
from baichuan2_tpu.files import MOST_JSON_BYTES, find_json, parse_json, read_bytes, read_json


def test_an_object_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": "\u4f60"}', "utf-8")
    assert read_json(tmp_path / "a.json") == find_json(tmp_path / "a.json") == {"a": "\u4f60"}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"{", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a": "\xff"}', "is not JSON"),
        (b"[]", "holds a list, not a JSON object"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "is not JSON (nested more than 32 levels deep)"),
        (b'{"a": NaN}', "is not JSON (NaN is not a finite number)"),
        (b'{"a": -Infinity}', "is not JSON (-Infinity is not a finite number)"),
        (b'{"a": 1e400}', "is not JSON ('1e400' is too large for a number)"),
        (b'{"a": 9223372036854775808}', "is not JSON ('9223372036854775808' is not a number below 2^63)"),
        (b'{"a": 1' + b"0" * 400 + b"}", "is not JSON ("),
        (b'{"a": "\\ud800"}', "is not JSON ('utf-8' codec can't encode"),
        (b"null", "holds a NoneType, not a JSON object"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, content: bytes, fault: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    for read in (read_json, find_json):
        with pytest.raises(FetchError) as caught:
            read(path, FetchError, "remove it")
        assert str(caught.value).startswith(f"{path}: {fault}")
        assert str(caught.value).endswith("; remove it")


def test_a_missing_file_is_refused_or_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "a.json", tmp_path / "file" / "a.json"):
        assert find_json(path) is None
        with pytest.raises(CheckpointError, match=r"a\.json: cannot be read \(.*\); fetch the file again"):
            read_json(path)


def test_a_file_that_cannot_be_opened_is_not_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(CheckpointError, match=r"loop/a\.json: cannot be read \(.*symbolic"):
        find_json(tmp_path / "loop" / "a.json")


def test_depth_and_digits_in_texts_are_texts() -> None:
    assert parse_json(b'{"a": "[[[[\\"' + b"[" * 100 + b'"}') == {"a": '[[[["' + "[" * 100}
    assert parse_json(b'\xef\xbb\xbf{"a": [-9223372036854775807, 1.5]}') == {"a": [-(2**63 - 1), 1.5]}


def test_a_device_and_a_pipe_are_refused_and_a_link_to_a_file_is_read(tmp_path: Path) -> None:
    # A link to /dev/zero was read until the memory was full; a pipe kept the process waiting.
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    for name in ("zero", "pipe"):
        with pytest.raises(CheckpointError, match=r"cannot be read \(is not a regular file\)"):
            read_bytes(tmp_path / name)
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link") == b"content"


def test_a_file_that_is_too_large_is_refused_unread(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match=f"more than {MOST_JSON_BYTES} bytes, which is the most"):
        read_json(tmp_path / "a.json")
