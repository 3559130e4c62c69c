"""Reading JSON files: what is wrong with one is said with its name and the next step."""

from pathlib import Path

import pytest

from baichuan2_tpu.errors import CheckpointError, FetchError
from baichuan2_tpu.files import find_json, read_json


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
