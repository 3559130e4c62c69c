"""An installed TPU-MLIR is found, and what is missing is named with the next step."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from baichuan2_tpu.errors import BackendUnavailable, CompileError
from baichuan2_tpu.files import digest_file
from baichuan2_tpu.toolchain import find_simulator, find_toolchain, locate, requirements
from baichuan2_tpu.toolchain.contents import SIMULATOR_LIBRARIES, VERSION
from baichuan2_tpu.toolchain.record import Record


@pytest.fixture(autouse=True)
def capable_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locate, "missing_for_compiler", lambda: None)
    monkeypatch.setattr(locate, "missing_for_simulator", lambda: None)
    monkeypatch.setattr(locate, "find_c_compiler", lambda: "/opt/gcc/bin/cc")
    monkeypatch.setattr(locate, "cache_folder", lambda: tmp_path / "cache")


def make_root(root: Path) -> Record:
    (root / "bin").mkdir(parents=True)
    (root / "bin/tpuc-opt").write_bytes(b"program")
    record = Record("compiler", VERSION, "ab", {"bin/tpuc-opt": digest_file(root / "bin/tpuc-opt")})
    record.write(root)
    return record


def make_simulator(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name in SIMULATOR_LIBRARIES:
        (folder / name).touch()
    return folder


def test_toolchain_is_found_in_a_folder_or_in_the_cache(tmp_path: Path) -> None:
    make_root(tmp_path / "here")
    make_root(locate.default_root("compiler"))
    assert find_toolchain(tmp_path / "here").tpuc_opt == tmp_path / "here/bin/tpuc-opt"
    assert find_toolchain().root == tmp_path / "cache/toolchain" / f"tpu-mlir-{VERSION}"
    assert find_toolchain().version == VERSION
    assert find_toolchain().model_tool.name == "model_tool"


def test_absent_toolchain_gives_the_command_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match=r"holds no TPU-MLIR; run: baichuan2 toolchain install$"):
        find_toolchain()
    with pytest.raises(CompileError, match=r"run: baichuan2 toolchain install --path .*here$"):
        find_toolchain(tmp_path / "here")


@pytest.mark.parametrize("text", ["", "[]", '{"format": 0}', '{"format": 1}', '{"format": 1, "files": 3}'])
def test_record_that_makes_no_sense_is_no_installation(tmp_path: Path, text: str) -> None:
    make_root(tmp_path)
    (tmp_path / "toolchain.json").write_text(text)
    with pytest.raises(CompileError, match="holds no TPU-MLIR"):
        find_toolchain(tmp_path)


def test_simulator_alone_is_no_toolchain(tmp_path: Path) -> None:
    replace(make_root(tmp_path), kind="simulator").write(tmp_path)
    with pytest.raises(CompileError, match="holds only the simulator; run"):
        find_toolchain(tmp_path)


def test_other_version_is_named(tmp_path: Path) -> None:
    replace(make_root(tmp_path), version="1.20").write(tmp_path)
    with pytest.raises(CompileError, match=rf"holds TPU-MLIR 1\.20, {VERSION} is needed; run"):
        find_toolchain(tmp_path)


@pytest.mark.parametrize("damage", [b"prog", None])
def test_file_that_is_gone_or_cut_is_named(tmp_path: Path, damage: bytes | None) -> None:
    make_root(tmp_path)
    program = tmp_path / "bin/tpuc-opt"
    program.write_bytes(damage) if damage else program.unlink()
    with pytest.raises(CompileError, match=r"bin/tpuc-opt: is missing or of a wrong size; run"):
        find_toolchain(tmp_path)


def test_machine_that_cannot_compile_is_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locate, "missing_for_compiler", lambda: "install gcc")
    monkeypatch.setattr(locate, "missing_for_simulator", lambda: "use a newer system")
    with pytest.raises(CompileError, match="install gcc"):
        find_toolchain()
    with pytest.raises(BackendUnavailable, match="use a newer system"):
        find_simulator()


def test_child_inherits_the_temporary_folder_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_root(tmp_path)
    for name in list(os.environ):
        monkeypatch.delenv(name)
    alone = find_toolchain(tmp_path).environment()
    monkeypatch.setenv("TMPDIR", "/big/disk")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/other")
    monkeypatch.setenv("OMP_NUM_THREADS", "99")
    assert find_toolchain(tmp_path).environment() == alone | {"TMPDIR": "/big/disk"}
    assert alone["CC"] == "/opt/gcc/bin/cc"
    folders = alone["PATH"].split(":")
    assert folders[0] == str(tmp_path / "bin")
    assert "/opt/gcc/bin" in folders


def test_simulator_is_found_in_either_installation_or_in_a_plain_folder(tmp_path: Path) -> None:
    plain = make_simulator(tmp_path / "plain")
    assert find_simulator(plain) == plain
    alone = make_simulator(locate.default_root("simulator") / "lib/simulator")
    assert find_simulator() == alone
    whole = make_simulator(locate.default_root("compiler") / "lib/simulator")
    assert find_simulator() == whole
    unpacked = make_simulator(tmp_path / "tpu_mlir/lib")
    assert find_simulator(tmp_path / "tpu_mlir") == unpacked


def test_absent_simulator_gives_the_command_that_installs_it(tmp_path: Path) -> None:
    make_simulator(tmp_path / "half")
    (tmp_path / "half/libbmrt.so").unlink()
    with pytest.raises(BackendUnavailable, match=r"half: does not hold the simulator .*--simulator-only"):
        find_simulator(tmp_path / "half")
    with pytest.raises(BackendUnavailable, match="run: baichuan2 toolchain install"):
        find_simulator()


class TestMachine:
    @pytest.fixture(autouse=True)
    def good_machine(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sys.platform", "linux")
        monkeypatch.setattr("platform.machine", lambda: "x86_64")
        monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.40"))
        monkeypatch.setattr("ctypes.CDLL", lambda name: None)
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")

    def test_good_machine_lacks_nothing(self) -> None:
        assert requirements.missing_for_compiler() is None
        assert requirements.find_c_compiler() == "/usr/bin/cc"

    def test_other_processor_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("platform.machine", lambda: "aarch64")
        assert "for x86-64 Linux, and this is" in (requirements.missing_for_compiler() or "")
        assert "aarch64" in (requirements.missing_for_simulator() or "")

    @pytest.mark.parametrize("found", [("glibc", "2.31"), ("", "")])
    def test_old_or_other_c_library_is_named(
        self, found: tuple[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("platform.libc_ver", lambda: found)
        assert "needs glibc 2.34 or newer" in (requirements.missing_for_simulator() or "")
        assert "needs glibc 2.35 or newer" in (requirements.missing_for_compiler() or "")

    def test_simulator_runs_where_the_c_library_is_too_old_for_the_compiler(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("platform.libc_ver", lambda: ("glibc", "2.34"))
        assert requirements.missing_for_simulator() is None
        assert "and this system has 2.34" in (requirements.missing_for_compiler() or "")

    def test_missing_terminal_library_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(name: str) -> None:
            raise OSError(name)

        monkeypatch.setattr("ctypes.CDLL", refuse)
        assert "libtinfo.so.6; install it" in (requirements.missing_for_compiler() or "")
        assert requirements.missing_for_simulator() is None

    def test_missing_c_compiler_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("shutil.which", lambda name: None)
        assert (requirements.missing_for_compiler() or "").endswith("install gcc")
        assert requirements.missing_for_simulator() is None
