"""What the real wheel leaves on the disk is what was meant: whole, small, and without its C library."""

import subprocess

from baichuan2_tpu.toolchain import Toolchain, find_simulator
from baichuan2_tpu.toolchain.contents import COMPILER, SIMULATOR_LIBRARIES
from baichuan2_tpu.toolchain.record import Record


def test_every_file_that_is_meant_is_there_and_whole(toolchain: Toolchain) -> None:
    record = Record.read(toolchain.root)
    assert record is not None
    assert record.first_damaged(toolchain.root) is None
    assert record.nbytes <= COMPILER.unpacked_bytes
    for _, target in COMPILER.moves:
        assert any(name == target or name.startswith(target) for name in record.files), target


def test_the_wheels_c_library_stays_out(toolchain: Toolchain) -> None:
    names = {path.name for path in toolchain.root.rglob("*.so*")}
    assert names.isdisjoint({"libc.so.6", "libm.so.6", "libpthread.so.0"})
    assert names >= set(SIMULATOR_LIBRARIES)


def test_simulator_does_not_see_the_wheels_cpp_library(toolchain: Toolchain) -> None:
    folder = find_simulator(toolchain.root)
    assert folder.is_relative_to(toolchain.root)
    assert not (folder.parent / "lib" / "third_party").exists()  # $ORIGIN/../lib/third_party


def test_programs_start_in_the_environment_made_for_them(toolchain: Toolchain) -> None:
    run = subprocess.run(
        [toolchain.tpuc_opt, "--version"],
        env=toolchain.environment(),
        check=True,
        capture_output=True,
        text=True,
    )
    assert "LLVM" in run.stdout
