"""``baichuan2 toolchain``: what it prints, and how it ends."""

import json
from pathlib import Path

import pytest

from baichuan2_tpu import toolchain
from baichuan2_tpu.doctor.proofs import prove_toolchain
from baichuan2_tpu.fetch import DownloadProgress
from baichuan2_tpu.files import digest_file
from baichuan2_tpu.toolchain import Toolchain, locate, status
from baichuan2_tpu.toolchain.contents import VERSION
from baichuan2_tpu.toolchain.record import Record
from running.cli_command import Run


@pytest.fixture(autouse=True)
def capable_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "missing_for_simulator", lambda: None)
    monkeypatch.setattr(status, "missing_for_compiler", lambda: None)


def test_installation_ends_with_the_measured_check(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def install(path: Path, *, wheel: Path, notice: object, progress: DownloadProgress | None) -> Toolchain:
        assert (path, wheel) == (tmp_path / "here", tmp_path / "file.whl")
        return Toolchain(path, VERSION)

    monkeypatch.setattr(toolchain, "install_toolchain", install)
    monkeypatch.setattr(
        prove_toolchain, "check_toolchain", lambda installed: prove_toolchain.SelfCheck(0.00056, 1.26, 2.5)
    )
    outcome = run(
        "toolchain", "install", "--path", str(tmp_path / "here"), "--wheel", str(tmp_path / "file.whl")
    )
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == (
        "checked: a layer compiled in 1.3 s and simulated in 2.5 s differs from numpy by 0.0006\n"
        f"installed {tmp_path / 'here'}\n"
    )


def test_simulator_alone_is_not_checked(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "install_simulator", lambda path, **_: tmp_path / "lib")
    monkeypatch.setattr(prove_toolchain, "check_toolchain", pytest.fail)
    outcome = run("toolchain", "install", "--simulator-only")
    assert (outcome.code, outcome.err) == (0, f"installed {tmp_path / 'lib'}\n")


def test_wheel_that_is_not_there_is_one_line(run: Run, tmp_path: Path) -> None:
    outcome = run(
        "toolchain", "install", "--simulator-only", "--wheel", "no.whl", "--path", str(tmp_path / "s")
    )
    assert outcome.code == 1
    assert outcome.err.startswith("error: no.whl: is not there, expected the wheel of tpu_mlir==1.30.2 with")
    assert outcome.err.count("\n") == 1


def test_info_of_nothing_says_what_to_run(run: Run) -> None:
    outcome = run("toolchain", "info")
    assert outcome.code == 0
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines() if " " in line.rstrip())
    assert lines["compiler"] == "not installed; run: baichuan2 toolchain install"
    assert lines["simulator"].endswith("run: baichuan2 toolchain install, or with --simulator-only")
    assert lines["files_bytes"] == "0 MB"


@pytest.mark.parametrize(
    ("version", "content", "state"),
    [
        (VERSION, b"program", "ready"),
        (VERSION, b"pr0gram", "bin/tpuc-opt is missing or damaged; run: baichuan2 toolchain install"),
        ("1.2", b"program", "version 1.2 is installed, 1.30.2 is needed; run: baichuan2 toolchain install"),
    ],
)
def test_info_is_one_json_object(run: Run, tmp_path: Path, version: str, content: bytes, state: str) -> None:
    program = tmp_path / "bin/tpuc-opt"
    program.parent.mkdir()
    program.write_bytes(b"program")
    Record("compiler", version, "ab", {"bin/tpuc-opt": digest_file(program)}).write(tmp_path)
    program.write_bytes(content)
    (tmp_path / "kernels/7").mkdir(parents=True)
    (tmp_path / "kernels/7/compiled").touch()
    facts = json.loads(run("toolchain", "info", "--json", "--path", str(tmp_path)).out)
    assert facts["compiler"] == state
    assert (facts["version"], facts["files_bytes"], facts["kernels"]) == (version, 7, 1)


def test_info_names_what_the_machine_lacks(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "missing_for_compiler", lambda: "install gcc")
    assert "install gcc" in run("toolchain", "info").out


def test_removal_names_every_folder(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "cache/baichuan2-tpu/toolchain/tpu-mlir-1.0"
    folder.mkdir(parents=True)
    assert run("toolchain", "remove").err == f"deleted {folder}\n"
    assert run("toolchain", "remove").err == "nothing was installed\n"
    assert not folder.exists()


def test_removal_of_another_folder_is_refused(run: Run, tmp_path: Path) -> None:
    outcome = run("toolchain", "remove", "--path", str(tmp_path))
    assert outcome.code == 1
    assert outcome.err == f"error: {tmp_path}: is not a TPU-MLIR installation; nothing was deleted\n"


def test_missing_command_is_wrong_usage(run: Run) -> None:
    outcome = run("toolchain")
    assert outcome.code == 2
    assert outcome.err == "error: Missing command; see baichuan2 toolchain --help\n"
