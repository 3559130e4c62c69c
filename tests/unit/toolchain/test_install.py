"""An installation of TPU-MLIR is whole or absent, whatever the wheel or a kill does to it."""

import multiprocessing
import os
import shutil
import signal
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from baichuan2_tpu import toolchain
from baichuan2_tpu.errors import BackendUnavailable, CompileError, FetchError, RequestError
from baichuan2_tpu.fetch import Wheel
from baichuan2_tpu.files import digest_file, locked_folder
from baichuan2_tpu.toolchain import contents, install
from baichuan2_tpu.toolchain.contents import COMPILER, SIMULATOR, Contents
from baichuan2_tpu.toolchain.record import Record

NAMES = {
    "tpu_mlir/bin/tpuc-opt": b"program",
    "tpu_mlir/lib/libcpuop.so": b"library",
    "tpu_mlir/lib/libbmlib.so.0": b"a",
    "tpu_mlir/lib/libbmrt.so": b"b" * 300_000,
    "tpu_mlir/lib/libcmodel_bm1684x.so": b"c",
    "tpu_mlir/lib/third_party/libc.so.6": b"must stay out",
    "tpu_mlir/cross_toolchains/ppl_compile/inc/ppl.h": b"header",
    "tpu_mlir/python/tool.py": b"not needed",
}


def write_wheel(path: Path, files: dict[str, bytes]) -> Wheel:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tpu_mlir/lib/", b"")
        for name, content in files.items():
            archive.writestr(name, content)
    return pin(path)


def pin(path: Path) -> Wheel:
    digest = digest_file(path)
    return Wheel("toy-mlir==1.0", digest.nbytes, digest.sha256)


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    write_wheel(tmp_path / "toy.whl", NAMES)
    return tmp_path / "toy.whl"


@pytest.fixture
def compiler(wheel: Path) -> Contents:
    return replace(COMPILER, wheel=pin(wheel), unpacked_bytes=1)


@pytest.fixture
def simulator(wheel: Path) -> Contents:
    return replace(SIMULATOR, wheel=pin(wheel), unpacked_bytes=1)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "place" / "toolchain"


def held(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def beside(root: Path) -> set[str]:
    return {path.name for path in root.parent.iterdir()}


def test_only_what_is_needed_is_unpacked(compiler: Contents, wheel: Path, root: Path) -> None:
    install.install(compiler, root, wheel=wheel)
    assert held(root) == {
        "bin/ppl_jit.sh",
        "bin/tpuc-opt",
        "cross_toolchains/ppl_compile/inc/ppl.h",
        "lib/libcpuop.so",
        "lib/simulator/libbmlib.so.0",
        "lib/simulator/libbmrt.so",
        "lib/simulator/libcmodel_bm1684x.so",
        "toolchain.json",
    }
    assert os.access(root / "bin/tpuc-opt", os.X_OK)
    assert os.access(root / "bin/ppl_jit.sh", os.X_OK)
    assert not os.access(root / "lib/libcpuop.so", os.X_OK)
    assert beside(root) == {"toolchain"}


def test_simulator_alone_is_three_files(simulator: Contents, wheel: Path, root: Path) -> None:
    install.install(simulator, root, wheel=wheel)
    libraries = {f"lib/simulator/{name}" for name in contents.SIMULATOR_LIBRARIES}
    assert held(root) == libraries | {"toolchain.json"}


def test_record_holds_the_digest_of_every_file(compiler: Contents, wheel: Path, root: Path) -> None:
    install.install(compiler, root, wheel=wheel)
    record = Record.read(root)
    assert record is not None
    assert (record.kind, record.version, record.wheel_sha256) == (
        "compiler",
        contents.VERSION,
        pin(wheel).sha256,
    )
    assert set(record.files) == held(root) - {"toolchain.json"}
    assert record.nbytes == sum((root / name).stat().st_size for name in record.files)
    assert record.first_damaged(root) is None


def test_second_installation_changes_nothing(compiler: Contents, wheel: Path, root: Path) -> None:
    install.install(compiler, root, wheel=wheel)
    before = root.stat().st_ino
    install.install(compiler, root)  # without a wheel: it would have to be downloaded
    assert root.stat().st_ino == before


@pytest.mark.parametrize("damage", [b"X", b"librarY", None])
def test_damaged_installation_is_made_again(
    compiler: Contents, wheel: Path, root: Path, damage: bytes | None
) -> None:
    install.install(compiler, root, wheel=wheel)
    if damage is None:
        (root / "lib/libcpuop.so").unlink()
    else:
        (root / "lib/libcpuop.so").write_bytes(damage)
    install.install(compiler, root, wheel=wheel)
    assert (root / "lib/libcpuop.so").read_bytes() == b"library"
    assert beside(root) == {"toolchain"}


def test_simulator_grows_into_the_compiler(
    compiler: Contents, simulator: Contents, wheel: Path, root: Path
) -> None:
    install.install(simulator, root, wheel=wheel)
    install.install(compiler, root, wheel=wheel)
    assert (root / "bin/tpuc-opt").exists()


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content[:-1] + b"x"])
def test_truncated_or_changed_wheel_is_refused(
    compiler: Contents, wheel: Path, root: Path, damage: Callable[[bytes], bytes]
) -> None:
    wheel.write_bytes(damage(wheel.read_bytes()))
    size = wheel.stat().st_size
    with pytest.raises(FetchError, match=rf"has {size} bytes and another digest, expected .*sha256 [0-9a-f]"):
        install.install(compiler, root, wheel=wheel)
    assert not root.exists()


def test_wheel_that_is_not_there_is_named(compiler: Contents, root: Path, tmp_path: Path) -> None:
    with pytest.raises(FetchError, match=r"none\.whl: is not there, expected the wheel of toy-mlir==1\.0"):
        install.install(compiler, root, wheel=tmp_path / "none.whl")


def test_member_that_leads_out_of_the_folder_is_refused(
    compiler: Contents, wheel: Path, root: Path, tmp_path: Path
) -> None:
    evil = "tpu_mlir/cross_toolchains/ppl_compile/inc/../../../../../evil"
    pinned = replace(compiler, wheel=write_wheel(wheel, NAMES | {evil: b"evil"}))
    with pytest.raises(FetchError, match="leads out of its folder"):
        install.install(pinned, root, wheel=wheel)
    assert not root.exists()
    assert not list(tmp_path.rglob("evil"))


def test_folder_with_other_things_is_left_alone(compiler: Contents, wheel: Path, root: Path) -> None:
    root.mkdir(parents=True)
    (root / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="is not a TPU-MLIR installation and not empty"):
        install.install(compiler, root, wheel=wheel)
    assert held(root) == {"thesis.txt"}


def test_empty_folder_may_be_used(compiler: Contents, wheel: Path, root: Path) -> None:
    root.mkdir(parents=True)
    install.install(compiler, root, wheel=wheel)
    assert (root / "bin/tpuc-opt").exists()


@pytest.mark.parametrize("name", ["my tools", "a;b", "it's"])
def test_folder_that_the_shell_would_split_is_refused(
    compiler: Contents, wheel: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(RequestError, match="a space or a special character in its name"):
        install.install(compiler, tmp_path / name, wheel=wheel)


def test_place_that_cannot_be_written_is_named(compiler: Contents, wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RequestError, match="cannot make the directory"):
        install.install(compiler, tmp_path / "file" / "toolchain", wheel=wheel)


def test_full_disk_is_seen_before_the_download(compiler: Contents, root: Path) -> None:
    with pytest.raises(FetchError, match=r"\d+ MB are free, \d+ MB are needed; free some"):
        install.install(replace(compiler, unpacked_bytes=1 << 60), root)


def kill_after_writing(compiler: Contents, wheel: Path, root: Path, writes: int) -> None:
    """Install, and die like by ``kill -9`` at one of the points where the disk changes."""
    left = iter(range(writes))

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for owner, name in ((Path, "mkdir"), (Path, "rename"), (Path, "chmod"), (Path, "write_text")):
        setattr(owner, name, counted(getattr(owner, name)))
    for name in ("copyfileobj", "copyfile", "rmtree"):
        setattr(shutil, name, counted(getattr(shutil, name)))
    install.install(compiler, root, wheel=wheel)
    os._exit(0)


@pytest.mark.parametrize("is_upgrade", [False, True])
def test_kill_at_any_moment_leaves_all_or_nothing(
    compiler: Contents, simulator: Contents, wheel: Path, root: Path, is_upgrade: bool
) -> None:
    if is_upgrade:
        install.install(simulator, root, wheel=wheel)
    context = multiprocessing.get_context("fork")
    writes, code = 0, -signal.SIGKILL
    while code == -signal.SIGKILL:
        child = context.Process(target=kill_after_writing, args=(compiler, wheel, root, writes))
        child.start()
        child.join()
        record = Record.read(root)
        assert record is None if not root.exists() else record is not None
        assert record is None or record.first_damaged(root) is None
        writes, code = writes + 1, child.exitcode
    assert code == 0
    assert writes > 20
    install.install(compiler, root, wheel=wheel)
    assert beside(root) == {"toolchain"}


def test_finished_download_survives_a_kill_and_is_used(compiler: Contents, wheel: Path, root: Path) -> None:
    downloads = root.with_name("toolchain.partial") / "download"
    downloads.mkdir(parents=True)
    (downloads.parent / "lock").touch()
    shutil.copy(wheel, downloads)
    notices: list[str] = []
    install.install(compiler, root, notice=notices.append)
    assert (root / "bin/tpuc-opt").exists()
    assert notices == ["fetching toy-mlir==1.0 (0 MB, once)"]
    assert beside(root) == {"toolchain"}


def test_leftovers_beside_a_whole_installation_are_cleared(
    compiler: Contents, wheel: Path, root: Path
) -> None:
    install.install(compiler, root, wheel=wheel)
    work = root.with_name("toolchain.partial")
    (work / "replaced").mkdir(parents=True)
    (work / "lock").touch()
    install.install(compiler, root)
    assert beside(root) == {"toolchain"}


def test_second_installer_is_told_of_the_first(compiler: Contents, wheel: Path, root: Path) -> None:
    with (
        locked_folder(root.with_name("toolchain.partial")),
        pytest.raises(RequestError, match=r"toolchain\.partial is being written by another process"),
    ):
        install.install(compiler, root, wheel=wheel)


def test_folder_beside_it_that_is_not_ours_is_left_alone(compiler: Contents, wheel: Path, root: Path) -> None:
    other = root.with_name("toolchain.partial") / "thesis.txt"
    other.parent.mkdir(parents=True)
    other.write_text("years of work")
    with pytest.raises(RequestError, match="holds files of something else"):
        install.install(compiler, root, wheel=wheel)
    assert other.exists()


def test_disk_that_fails_while_unpacking_is_reported(
    compiler: Contents, wheel: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", fail)
    with pytest.raises(FetchError, match=r"cannot be installed .*No space left on device"):
        install.install(compiler, root, wheel=wheel)
    assert not root.exists()


def test_public_calls_install_where_they_are_told(
    compiler: Contents,
    simulator: Contents,
    wheel: Path,
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("missing_for_compiler", "missing_for_simulator"):
        monkeypatch.setattr(install, name, lambda: None)
    monkeypatch.setattr(install, "COMPILER", compiler)
    monkeypatch.setattr(install, "SIMULATOR", simulator)
    assert toolchain.install_toolchain(root, wheel=wheel).tpuc_opt.is_file()
    alone = root.with_name("alone")
    assert toolchain.install_simulator(alone, wheel=wheel) == alone / "lib/simulator"


def test_removal_deletes_an_installation_and_nothing_else(
    compiler: Contents, wheel: Path, root: Path, tmp_path: Path
) -> None:
    install.install(compiler, root, wheel=wheel)
    with pytest.raises(RequestError, match="is not a TPU-MLIR installation; nothing was deleted"):
        install.remove(tmp_path)
    assert install.remove(root) == [root]
    assert not root.exists()


def test_removal_without_a_path_clears_the_cache(
    compiler: Contents, simulator: Contents, wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(install, "cache_folder", lambda: tmp_path)
    folder = tmp_path / "toolchain"
    install.install(compiler, folder / "one", wheel=wheel)
    install.install(simulator, folder / "two", wheel=wheel)
    (folder / "one.partial").mkdir()
    assert install.remove() == [folder / "one", folder / "one.partial", folder / "two"]
    assert install.remove() == []


def test_machine_that_cannot_run_it_is_not_given_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "missing_for_compiler", lambda: "no C compiler")
    monkeypatch.setattr(install, "missing_for_simulator", lambda: "no glibc")
    with pytest.raises(CompileError, match="no C compiler"):
        toolchain.install_toolchain()
    with pytest.raises(BackendUnavailable, match="no glibc"):
        toolchain.install_simulator()
