"""Writing files whole: the old content or the new one, on the disk before anything is said of it."""

import errno
import json
import os
from pathlib import Path

import pytest

from baichuan2_tpu.files import move_whole, whole_file, write_json, write_whole


def test_a_file_is_replaced_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    write_whole(path, b"old")

    def write_half() -> None:
        with whole_file(path) as part:
            part.write_text("new")
            raise error

    with pytest.raises(type(error)):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_and_its_name_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Was renamed unsynced: after a power failure a record could name a file that was empty.
    synced: list[Path] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write_json(tmp_path / "a.json", {"a": "\u4f60"}, ensure_ascii=False)
    assert json.loads((tmp_path / "a.json").read_text("utf-8")) == {"a": "\u4f60"}
    file, folder = synced
    assert (file.parent, file.suffix) == (tmp_path, ".part")
    assert folder == tmp_path


def test_a_folder_that_cannot_be_synced_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(errno.EINVAL, "not for folders")

    monkeypatch.setattr(os, "fsync", refuse_folders)
    (tmp_path / "part").write_text("content")
    move_whole(tmp_path / "part", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "content"


def test_a_disk_that_fails_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="broken"):
        write_whole(tmp_path / "file", "content")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_on_the_disk_with_all_its_files_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Finished bundles and checkpoints were renamed with files that only memory held.
    synced: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )
    (tmp_path / "partial" / "inner").mkdir(parents=True)
    (tmp_path / "partial" / "inner" / "file").write_text("content")
    move_whole(tmp_path / "partial", tmp_path / "whole")
    assert sorted(synced[:-2]) == ["file", "inner"]
    assert synced[-2:] == ["partial", tmp_path.name]
    assert (tmp_path / "whole" / "inner" / "file").read_text() == "content"
