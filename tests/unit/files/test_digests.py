"""Digests of files: the hash of a file, of one that changed, and of several kinds in one reading."""

import hashlib
from pathlib import Path

import pytest

from baichuan2_tpu.files import FileDigest, digest_file, hash_blocks, hash_file


def test_a_file_is_known_by_its_size_and_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    digest = digest_file(path)
    assert digest == FileDigest(7, hashlib.sha256(b"content").hexdigest())
    assert digest.is_at(path)
    path.write_bytes(b"CONTENT")
    assert not digest.is_at(path)
    assert not digest.is_at(tmp_path), "a folder is no file"
    assert not digest.is_at(tmp_path / "absent")


def test_a_file_of_another_size_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"longer content")
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("was read"))
    assert not FileDigest(7, hashlib.sha256(b"content").hexdigest()).is_at(tmp_path / "file")


def test_one_reading_gives_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"what is up, doc?")
    # Source: the example of "Git Internals - Git Objects" in the Pro Git book.
    assert hash_file(path, ["git", "sha256"]) == {
        "git": "bd9dbf5aae1a3862dd1526723246b20206e5fc37",
        "sha256": hash_blocks([b"what is", b" up, doc?"]),
    }
