"""Packed weights in the cache: mapped while the checkpoint is what it was, made anew otherwise."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.identify import Located
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.engine import packed_file
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.packed_file import PackedFile
from baichuan2_tpu.engine.registry import CpuSettings, open_engine
from baichuan2_tpu.files import hash_blocks, locked_folder
from models.tiny_bundle import write_tiny_checkpoint

TOKENS = [1, 5, 9, 2, 7]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache in which small models are kept too."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packed_file, "_LEAST_BYTES", 0)
    return tmp_path / "cache" / "baichuan2-tpu" / "packed"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "tiny", 4)


@pytest.fixture
def packed_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the linear layers that are read to be packed, which grow."""
    names: list[str] = []
    read = QuantizedCheckpoint.linear
    monkeypatch.setattr(
        QuantizedCheckpoint, "linear", lambda self, name: names.append(name) or read(self, name)
    )
    return names


def logits(
    checkpoint: Path, *, keep: bool = True, notice: Callable[[str], None] = pytest.fail
) -> NDArray[np.float32]:
    """Open a checkpoint and return the logits of some tokens."""
    engine = open_engine(
        Located(checkpoint, "quantized"), cpu=CpuSettings(1, keep_packed=keep), notice=notice
    )
    try:
        return engine.forward([Chunk(engine.open_sequence(), TOKENS, 1)])[0]
    finally:
        engine.close()


@pytest.mark.parametrize("bits", [4, 8])
def test_the_second_start_packs_nothing_and_computes_the_same_bits(
    tmp_path: Path, packed_names: list[str], bits: int
) -> None:
    checkpoint = write_tiny_checkpoint(tmp_path / f"tiny-{bits}", 4 if bits == 4 else 8)
    expected = logits(checkpoint, keep=False)
    first = logits(checkpoint)
    assert packed_names
    packed_names.clear()
    second = logits(checkpoint)
    assert not packed_names
    assert (first == expected).all()
    assert (second == expected).all()


def test_nothing_is_kept_unless_it_is_asked_for(checkpoint: Path, cache: Path) -> None:
    logits(checkpoint, keep=False)
    assert not cache.exists()


def test_small_models_are_not_kept(checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    logits(checkpoint)
    assert not cache.exists()


def _rewrite(path: Path) -> None:
    """Write the same size at the same time of change, as a tool that restores times does."""
    status, content = path.stat(), path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _replace(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    copy.replace(path)


@pytest.mark.parametrize("name", ["*.safetensors", "config.json"])
@pytest.mark.parametrize("change", [_rewrite, _replace, lambda path: path.touch()])
def test_a_changed_checkpoint_is_packed_again(
    checkpoint: Path, packed_names: list[str], name: str, change: Callable[[Path], None]
) -> None:
    logits(checkpoint)
    packed_names.clear()
    path = next(checkpoint.glob(name))
    if change is not _rewrite or name != "config.json":
        change(path)
    else:
        path.write_bytes(path.read_bytes() + b" ")
    expected = logits(checkpoint, keep=False)
    packed_names.clear()
    assert (logits(checkpoint) == expected).all()
    assert packed_names
    packed_names.clear()
    assert (logits(checkpoint) == expected).all()
    assert not packed_names


def test_another_checkpoint_at_the_same_place_is_packed_again(
    checkpoint: Path, packed_names: list[str]
) -> None:
    logits(checkpoint)
    shutil.rmtree(checkpoint)
    write_tiny_checkpoint(checkpoint, 8)
    expected = logits(checkpoint, keep=False)
    packed_names.clear()
    assert (logits(checkpoint) == expected).all()
    assert packed_names


def _only_file(cache: Path) -> Path:
    (path,) = cache.glob("*.packed")
    return path


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.chmod(0o666),
        lambda path: os.truncate(path, path.stat().st_size - 4096),
        lambda path: os.truncate(path, 1 << 20),
        lambda path: os.truncate(path, 0),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["others may write", "shortened", "header alone", "empty", "gone", "a folder"],
)
def test_a_file_that_cannot_be_trusted_is_passed_over(
    checkpoint: Path, cache: Path, packed_names: list[str], damage: Callable[[Path], object]
) -> None:
    expected = logits(checkpoint)
    damage(_only_file(cache))
    packed_names.clear()
    notices: list[str] = []
    assert (logits(checkpoint, notice=notices.append) == expected).all()
    assert packed_names
    assert all("not kept for the next start" in notice for notice in notices)


def test_a_link_to_a_checkpoint_is_that_checkpoint(
    checkpoint: Path, tmp_path: Path, packed_names: list[str]
) -> None:
    logits(checkpoint)
    link = tmp_path / "link"
    link.symlink_to(checkpoint)
    packed_names.clear()
    logits(link)
    assert not packed_names


def test_files_of_checkpoints_that_are_gone_and_of_killed_starts_are_removed(
    checkpoint: Path, cache: Path, tmp_path: Path
) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", 4)
    logits(other)
    (cache / ".other.123.part").write_bytes(b"half")
    (cache / "readme.txt").write_text("mine")
    shutil.rmtree(other)
    logits(checkpoint)
    assert {path.name for path in cache.iterdir()} == {"lock", "readme.txt", _only_file(cache).name}
    assert _only_file(cache).name.startswith("tiny-")


def test_a_full_disk_is_told_and_the_model_answers(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    expected = logits(checkpoint, keep=False)
    monkeypatch.setattr(packed_file, "_write", fill)
    notices: list[str] = []
    assert (logits(checkpoint, notice=notices.append) == expected).all()
    assert len(notices) == 1
    assert notices[0].endswith("No space left on device")
    assert not list(cache.glob("*.p*"))


def test_a_disk_with_little_room_is_left_alone(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(checkpoint)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 30))
    notices: list[str] = []
    logits(checkpoint, notice=notices.append)
    assert "has 1.1 GB free and needs 2.1" in notices[0]
    assert not list(cache.glob("*.packed"))


def test_a_cache_that_cannot_be_written_is_told(checkpoint: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    notices: list[str] = []
    logits(checkpoint, notice=notices.append)
    assert "cannot make the directory" in notices[0]


def test_progress_counts_up_to_all_bytes(checkpoint: Path) -> None:
    for _ in range(2):
        steps: list[tuple[int, int]] = []
        engine = open_engine(
            Located(checkpoint, "quantized"),
            cpu=CpuSettings(1, keep_packed=True),
            progress=lambda done, total, steps=steps: steps.append((done, total)),
        )
        engine.close()
        assert steps[-1][0] == steps[-1][1] > 0
        assert all(0 <= done <= total for done, total in steps)


LAYOUT_DIGESTS = {1: {4: "d221fa0ff60588b3", 8: "82f87a8d2fdc7b43"}}


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layout_that_changed_has_a_number_of_its_own(tmp_path: Path, cache: Path, bits: int) -> None:
    """Whoever changes how weights are packed raises kPackedLayout: kept files of the old layout are wrong."""
    checkpoint = write_tiny_checkpoint(tmp_path / "tiny", 4 if bits == 4 else 8)
    logits(checkpoint)
    content = _only_file(cache).read_bytes()[packed_file._HEADER_BYTES :]
    layout = packed_file._native.PACKED_LAYOUT
    assert hash_blocks([content])[:16] == LAYOUT_DIGESTS[layout][bits]


def test_a_place_is_named_after_the_checkpoint(checkpoint: Path, cache: Path) -> None:
    path = PackedFile(checkpoint, [checkpoint / "config.json"]).path
    assert path.parent == cache
    assert path.name.startswith("tiny-")
    assert path != PackedFile(checkpoint.parent, [checkpoint / "config.json"]).path


def test_a_checkpoint_with_a_long_name_is_kept(tmp_path: Path, cache: Path) -> None:
    # A file may have 255 bytes in its name, a folder too, and the kept file has some more.
    logits(write_tiny_checkpoint(tmp_path / ("模" * 80), 4))
    assert _only_file(cache).name.startswith("模模")


def test_a_cache_on_another_disk_is_reached_through_a_link(
    checkpoint: Path, cache: Path, tmp_path: Path, packed_names: list[str]
) -> None:
    # The link was refused, with the advice to name another destination, which nobody can.
    cache.parent.mkdir(parents=True)
    cache.symlink_to(tmp_path / "disk", target_is_directory=True)
    logits(checkpoint)
    packed_names.clear()
    logits(checkpoint)
    assert not packed_names


def test_another_start_that_writes_is_named_without_a_next_step(checkpoint: Path, cache: Path) -> None:
    notices: list[str] = []
    with locked_folder(cache):
        logits(checkpoint, notice=notices.append)
    (notice,) = notices
    assert notice.partition(": ")[2] == f"{cache} is being written by another process"


def test_pages_that_the_disk_cannot_give_are_passed_over(tmp_path: Path) -> None:
    # To touch them ends the process with SIGBUS; the error of madvise was ignored.
    path = tmp_path / "file"
    path.write_bytes(bytes(64 << 10))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages:
        assert packed_file._populate(pages, None)
        os.truncate(path, 4096)
        assert not packed_file._populate(pages, None)


def test_files_of_checkpoints_that_cannot_be_looked_at_stay(
    checkpoint: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of them kept every other model from being kept: "Permission denied".
    other = write_tiny_checkpoint(tmp_path / "other", 4)
    logits(other)
    is_dir = Path.is_dir

    def refuse(path: Path) -> bool:
        if path == other:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", refuse)
    logits(checkpoint)
    assert len(list(cache.glob("*.packed"))) == 2
