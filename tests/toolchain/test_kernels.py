"""Kernels are built while a net is compiled, by our script; two compilers may do so at once."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from baichuan2_tpu.doctor.proofs import prove_toolchain
from baichuan2_tpu.errors import CompileError
from baichuan2_tpu.toolchain import Toolchain
from baichuan2_tpu.toolchain.locate import KERNELS


@pytest.fixture
def fresh(toolchain: Toolchain, tmp_path: Path) -> Toolchain:
    """The toolchain with a folder of kernels of its own, still empty."""
    root = tmp_path / "toolchain"
    root.mkdir()
    for name in ("bin", "lib", "cross_toolchains"):
        shutil.copytree(toolchain.root / name, root / name, copy_function=link)
    (root / KERNELS / "refused").mkdir(parents=True)
    (root / KERNELS / "flag.txt").mkdir()
    return replace(toolchain, root=root)


def link(source: str, target: str) -> None:
    """Copy without the bytes; a program finds its libraries from where it is, so no symbolic link does."""
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system
        shutil.copy2(source, target)


def compile_layer(toolchain: Toolchain, folder: Path) -> bytes:
    """Return the bmodel of the check's layer without the time at which it was made."""
    folder.mkdir()
    prove_toolchain._write_weights(folder)
    content = prove_toolchain._compile(toolchain, folder).read_bytes()
    start = content.index(b"libbm1684x_kernel_module.so") + len("libbm1684x_kernel_module.so")
    return content[:start] + content[start + 64 :]


def kernels(toolchain: Toolchain) -> list[str]:
    return [path.name for path in sorted((toolchain.root / KERNELS).glob("*/lib/*"))]


def test_two_compilers_at_once_build_a_kernel_once_and_agree(fresh: Toolchain, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(lambda name: compile_layer(fresh, tmp_path / name), ("one", "other"))
    assert one == other
    assert kernels(fresh) == ["libfattention_v2_f16.so"]
    built = next((fresh.root / KERNELS).glob("*/lib/*")).stat()
    assert compile_layer(fresh, tmp_path / "again") == one
    assert next((fresh.root / KERNELS).glob("*/lib/*")).stat() == built


def test_failure_of_the_c_compiler_is_shown_and_not_remembered(
    fresh: Toolchain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'the disk is full' >&2\nexit 1\n")
    broken.chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setattr("baichuan2_tpu.toolchain.locate.find_c_compiler", lambda: str(broken))
        with pytest.raises(CompileError, match="tpuc-opt ended with"):
            compile_layer(fresh, tmp_path / "fails")
    (log,) = (tmp_path / "fails").glob("block_cache_0-16-*.log")
    assert "the disk is full" in log.read_text(errors="replace")
    compile_layer(fresh, tmp_path / "works")
    assert kernels(fresh) == ["libfattention_v2_f16.so"]
