"""What is missing or wrong before the simulator starts is said, with the next step."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from baichuan2_tpu.engine.device import elf_file, simulator
from baichuan2_tpu.engine.device.bmrt_library import BmrtLibrary, MemoryStruct
from baichuan2_tpu.engine.device.bmrt_nets import StageMemory, check_shared
from baichuan2_tpu.engine.device.simulator import prepare_simulator, simulator_memory_bytes
from baichuan2_tpu.errors import ArtifactError, BackendUnavailable

LIBRARIES = ("libbmlib.so.0", "libbmrt.so", "libcmodel_bm1684x.so")
MAPS = Path("/proc/self/maps")


def loaded_library(name: str) -> Path:
    """Return where a library that this process has loaded lies."""
    lines = MAPS.read_text("utf-8").splitlines()
    return Path(next(line.split()[-1] for line in lines if f"/{name}" in line))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three files of the right names that are no libraries."""
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("TPUKERNEL_FIRMWARE_PATH", "nowhere")
    for name in LIBRARIES:
        (tmp_path / name).write_bytes(b"no library")
    return tmp_path


def test_another_machine_is_told_to_use_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(
        BackendUnavailable, match="x86_64 only, this is Linux with aarch64; use the cpu engine"
    ):
        prepare_simulator(folder)


@pytest.mark.parametrize("name", LIBRARIES)
def test_a_missing_library_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BackendUnavailable, match=f"{name}: not found; run baichuan2 toolchain install"):
        prepare_simulator(folder)


def test_a_file_that_is_no_library_is_named(folder: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"libcmodel_bm1684x\.so: cannot be loaded"):
        prepare_simulator(folder)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86_64 machine: so is the simulator")
def test_a_library_of_another_version_is_named(folder: Path) -> None:
    shutil.copyfile(loaded_library("libm.so"), folder / "libcmodel_bm1684x.so")
    with pytest.raises(
        BackendUnavailable, match=r"does not call pthread_mutex_unlock, as tpu_mlir 1\.30\.2's"
    ):
        prepare_simulator(folder)


def test_memory_that_may_not_be_changed_is_told() -> None:
    with pytest.raises(
        BackendUnavailable, match="this system forbids to change the simulator's memory: Cannot"
    ):
        simulator._protect(0, 3)  # nothing is ever mapped there


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86_64 machine: so is the simulator")
def test_a_library_whose_place_is_unknown_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_loaded(path: Path) -> int:
        raise ValueError(f"{path}: is not loaded")

    shutil.copyfile(loaded_library("libm.so"), folder / "libcmodel_bm1684x.so")
    monkeypatch.setattr(simulator, "call_slots", lambda path, function: [16])
    monkeypatch.setattr(simulator, "load_address", not_loaded)
    with pytest.raises(BackendUnavailable, match="is not loaded; run baichuan2 toolchain install"):
        prepare_simulator(folder)


def test_memory_is_the_variables_or_four_gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CMODEL_GLOBAL_MEM_SIZE", raising=False)
    assert simulator_memory_bytes() == 4 << 30
    monkeypatch.setenv("CMODEL_GLOBAL_MEM_SIZE", "0x10000000")
    assert simulator_memory_bytes() == 256 << 20
    monkeypatch.setenv("CMODEL_GLOBAL_MEM_SIZE", "much")
    with pytest.raises(BackendUnavailable, match="CMODEL_GLOBAL_MEM_SIZE=much: is no number of bytes"):
        simulator_memory_bytes()
    # Was an abort inside libbmlib.
    monkeypatch.setenv("CMODEL_GLOBAL_MEM_SIZE", "0x100000")
    with pytest.raises(
        BackendUnavailable, match="less than the simulator itself needs; give 0x6000000 or more"
    ):
        simulator_memory_bytes()


def test_a_file_that_is_no_library_has_no_slots(folder: Path) -> None:
    with pytest.raises(ValueError, match="is not a 64-bit ELF library"):
        elf_file.call_slots(folder / LIBRARIES[0], "free")


@pytest.mark.skipif(platform.machine() != "x86_64", reason="needs an x86_64 machine: so is the simulator")
def test_a_text_of_a_loaded_library_is_found_where_it_lies() -> None:
    library = loaded_library("libm.so")
    (address,) = elf_file.text_addresses(library, b"pow")
    assert ctypes.string_at(elf_file.load_address(library) + address) == b"pow"
    assert elf_file.text_addresses(library, b"[%d] do_allreduce: %d.\n") == []


def test_a_file_that_is_no_library_has_no_texts(folder: Path) -> None:
    with pytest.raises(ValueError, match="is not a 64-bit ELF library"):
        elf_file.text_addresses(folder / LIBRARIES[0], b"pow")


def test_a_library_that_is_not_loaded_has_no_address(folder: Path) -> None:
    with pytest.raises(ValueError, match="is not loaded"):
        elf_file.load_address(folder / LIBRARIES[0])


def test_a_machine_without_the_vendors_libraries_is_told_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match=r"libbmlib\.so\.0: not found; install libsophon 0\.5\.1"):
        BmrtLibrary(tmp_path)


OPEN = (
    "import sys, pathlib; from baichuan2_tpu.engine.device.bmrt_library import BmrtLibrary;"
    " BmrtLibrary(pathlib.Path(sys.argv[1]))"
)


def test_a_library_without_a_function_is_called_too_old(folder: Path) -> None:
    for name in LIBRARIES[:2]:
        shutil.copyfile(loaded_library("libm.so"), folder / name)
    # In a process of its own: here it would stand in the way of the real one.
    done = subprocess.run([sys.executable, "-c", OPEN, folder], capture_output=True, text=True, check=False)
    assert "has no bm_dev_getcount; install libsophon 0.5.1" in done.stderr
    assert done.stdout == ""


def test_stages_that_do_not_share_their_inputs_are_refused() -> None:
    one, other = (StageMemory((MemoryStruct(address, 0, 0, 0, 64),), ()) for address in (4096, 8192))
    check_shared("block_cache_0", (one, one))
    with pytest.raises(ArtifactError, match="block_cache_0: its stages do not share their input memory"):
        check_shared("block_cache_0", (one, other))


def test_a_library_that_cannot_be_loaded_is_named(folder: Path) -> None:
    # In a process of its own: one that has run the simulator refuses any other copy before it looks at it.
    done = subprocess.run([sys.executable, "-c", OPEN, folder], capture_output=True, text=True, check=False)
    assert "libbmlib.so.0: cannot be loaded" in done.stderr
