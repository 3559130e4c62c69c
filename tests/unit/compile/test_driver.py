"""What a build refuses before it calls the compiler; builds themselves are in tests/toolchain."""

import errno
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest

from baichuan2_tpu.compile import driver
from baichuan2_tpu.compile.assemble import open_source
from baichuan2_tpu.compile.driver import BuildSettings, compile_bundle
from baichuan2_tpu.errors import CheckpointError, CompileError, RequestError
from baichuan2_tpu.files import locked_folder
from baichuan2_tpu.manifest import MANIFEST_NAME
from baichuan2_tpu.toolchain import Toolchain
from models.tiny_bundle import TINY_SETTINGS, write_tiny_checkpoint

NOWHERE = BuildSettings(Toolchain(Path("/nowhere"), "1.30.2"))


class Usage(NamedTuple):
    """What shutil says of a disk."""

    total: int
    used: int
    free: int


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", 4)


def test_jobs_below_one_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="jobs is 0, allowed is 1 or more"):
        compile_bundle(checkpoint, tmp_path / "out", TINY_SETTINGS, replace(NOWHERE, jobs=0))


def test_a_destination_that_exists_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    for name in ("out", "link"):
        with pytest.raises(RequestError, match=f"{name} exists already; remove it or name another"):
            compile_bundle(checkpoint, tmp_path / name, TINY_SETTINGS, NOWHERE)


def test_a_setting_that_the_model_cannot_have_leaves_nothing(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="a context of 5000 tokens cannot be compiled"):
        compile_bundle(checkpoint, tmp_path / "out", replace(TINY_SETTINGS, context=5000), NOWHERE)
    assert list(tmp_path.iterdir()) == []


def test_several_devices_are_refused_as_they_would_not_share_anything(
    checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"2 devices cannot share the model: .* compile for 1 device"):
        compile_bundle(checkpoint, tmp_path / "out", replace(TINY_SETTINGS, devices=2), NOWHERE)


def test_a_disk_too_small_is_refused_with_both_numbers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver.shutil, "disk_usage", lambda _: Usage(0, 0, 10_000_000))
    with pytest.raises(RequestError, match=r"needs 0\.\d\d GB more, the disk has 0\.01 GB free; free some"):
        compile_bundle(checkpoint, tmp_path / "out", TINY_SETTINGS, NOWHERE)


def test_a_disk_that_fills_on_the_way_is_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(driver.np, "savez", fail)
    with pytest.raises(CompileError, match=r"out\.partial: No space left on device, .* GB are free; what is"):
        compile_bundle(checkpoint, tmp_path / "out", TINY_SETTINGS, NOWHERE)


def test_a_partial_folder_that_is_a_link_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "out.partial").symlink_to(tmp_path / "theirs")
    with pytest.raises(RequestError, match=r"out\.partial is a link to .*theirs; remove it"):
        compile_bundle(checkpoint, tmp_path / "out", TINY_SETTINGS, NOWHERE)
    assert not list((tmp_path / "theirs").iterdir())


def test_two_builds_of_one_bundle_do_not_mix(checkpoint: Path, tmp_path: Path) -> None:
    with (
        locked_folder(tmp_path / "out.partial"),
        pytest.raises(RequestError, match=r"out\.partial is being written by another process; wait for it"),
    ):
        compile_bundle(checkpoint, tmp_path / "out", TINY_SETTINGS, NOWHERE)


def test_a_folder_of_something_else_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.tex").touch()
    with pytest.raises(RequestError, match=r"out\.partial holds files of something else"):
        compile_bundle(checkpoint, tmp_path / "out", TINY_SETTINGS, NOWHERE)
    assert (tmp_path / "out.partial" / "thesis.tex").exists()


def test_a_compiler_that_is_gone_is_an_error_that_names_it(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(
        CompileError, match=r"^tpuc-opt ended with exit code 1\ncommand: /nowhere/bin/tpuc-opt"
    ):
        compile_bundle(checkpoint, tmp_path / "out", TINY_SETTINGS, NOWHERE)


def test_what_cannot_be_compiled_is_told_from_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    with pytest.raises(RequestError, match=r"is a GGUF file; first run baichuan2 quantize SRC DST"):
        open_source(tmp_path / "model.gguf")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / MANIFEST_NAME).write_text(json.dumps({}))
    with pytest.raises(RequestError, match="bundle: is compiled already; name the checkpoint"):
        open_source(tmp_path / "bundle")
    with pytest.raises(CheckpointError, match="absent: does not exist"):
        open_source(tmp_path / "absent")
