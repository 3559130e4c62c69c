"""A disk that is really full: one plain line, exit code 1, nothing half there under a trusted name."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from baichuan2_tpu.cli.line_editor import open_history
from doubles.fault_server import serve_hub
from models.bundle_manifest import bundle_manifest
from running.cli_command import Outcome, Run

Mount = Callable[[str], Path]
FULL = "No space left on device"
BYTES = [f"size={size}k" for size in (16, 64, 260)]
FILES = [f"size=2m,nr_inodes={count}" for count in (2, 4, 10)]
"""Disks that are full after some bytes, and after some files."""


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """Mount small disks."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount_disk(options: str) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk cannot be mounted ({done.stderr.strip()}); run as root")
        return folder

    yield mount_disk
    subprocess.run(["umount", "-q", str(folder)], check=False)


@pytest.fixture(autouse=True)
def _disks_seem_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let work begin that would be refused before: a disk can also be filled by others meanwhile."""
    usage = shutil.disk_usage("/")
    large = type(usage)(1 << 50, 0, 1 << 50)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: large)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def check_refusal(done: Outcome) -> None:
    lines = [line for line in done.err.splitlines() if not line.startswith(("fetching", "quantising"))]
    assert (done.code, done.out) == (1, "")
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert FULL in lines[0]
    assert "internal" not in lines[0]


@pytest.fixture(params=["search", "gptq"])
def words(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """How to quantise."""
    if request.param == "search":
        return []
    text = tmp_path / "text.txt"
    text.write_text("hello world, this is a text. " * 40)
    return ["--method", "gptq", "--calibration", str(text), "--calibration-tokens", "256"]


@pytest.mark.parametrize("options", [*BYTES, *FILES])
def test_quantising_continues_once_there_is_space(
    run: Run, mount: Mount, float_model: Path, words: list[str], options: str
) -> None:
    # A full disk was "internal: ...; please report it".
    disk = mount(options)
    check_refusal(run("quantize", float_model, disk / "out", *words))
    assert not (disk / "out").exists()
    mount("remount,size=90m,nr_inodes=1000")
    assert run("quantize", float_model, disk / "out", *words).code == 0
    assert run("quantize", float_model, disk / "other", *words).code == 0
    assert contents(disk / "out") == contents(disk / "other")


@pytest.fixture
def hub(float_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """Serve the files of a model."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    files = contents(float_model)
    with serve_hub(files) as served:
        monkeypatch.setenv("HF_ENDPOINT", served.hub_url)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", served.hub_url)
        yield files


@pytest.mark.parametrize("options", [*BYTES, *FILES])
def test_fetching_continues_once_there_is_space(
    run: Run, mount: Mount, hub: dict[str, bytes], options: str
) -> None:
    disk = mount(options)
    words = ("fetch", "baichuan2-7b-base", "--to", disk / "model")
    check_refusal(run(*words))
    assert contents(disk / "model").items() <= hub.items()
    mount("remount,size=90m,nr_inodes=1000")
    assert run(*words).code == 0
    assert contents(disk / "model").items() <= hub.items()


def test_a_picture_is_there_whole_or_not_at_all(run: Run, mount: Mount, tmp_path: Path) -> None:
    bundle_manifest().write(tmp_path)
    disk = mount("size=4k")
    (disk / "other").write_bytes(b"x" * 4096)
    done = run("estimate", tmp_path, "--picture", disk / "estimate.svg")
    assert done.code == 1
    assert done.err == (
        f"error: {disk}/estimate.svg: {FULL}; name what can be read or written, on a disk with free space\n"
    )
    assert [path.name for path in disk.iterdir()] == ["other"]


def test_a_chat_continues_without_its_history(mount: Mount) -> None:
    # A full disk ended the chat at the next line.
    disk = mount("size=4k")
    (disk / "history").touch()
    (disk / "other").write_bytes(b"x" * 4096)
    history = open_history(disk / "history")
    history.append_string("hello")
    assert history.get_strings() == ["hello"]
    assert (disk / "history").read_bytes() == b""
