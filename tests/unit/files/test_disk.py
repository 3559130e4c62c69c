"""A full disk is one plain error, whoever notices it."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.files import disk_errors, is_full

FULL = [OSError(errno.ENOSPC, "No space left on device"), OSError("1024 requested and 512 written")]


@pytest.mark.parametrize("error", FULL, ids=["system", "numpy"])
def test_a_full_disk_says_what_is_free_and_what_to_do(tmp_path: Path, error: OSError) -> None:
    with (
        pytest.raises(RequestError, match=r"No space left on device, .* GB are free; what is finished is"),
        disk_errors(tmp_path, RequestError),
    ):
        raise error


def test_another_fault_stays_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), disk_errors(tmp_path, RequestError):
        raise PermissionError(errno.EACCES, "denied")


def test_a_disk_without_a_block_left_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_full(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=4096))
    assert is_full(tmp_path)


def test_a_disk_without_a_file_left_is_full_whatever_bytes_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It named the gigabytes that were free, and advised to free more of them.
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_files=1000, f_favail=0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    assert is_full(tmp_path)
    expected = (
        r"device, it has no room for another file \(no inode is free\); what .*: remove files there and run"
    )
    with pytest.raises(RequestError, match=expected), disk_errors(tmp_path, RequestError):
        raise FULL[0]


def test_a_file_system_that_counts_no_files_is_not_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(f_files=0, f_favail=0))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 40))
    assert not is_full(tmp_path)
