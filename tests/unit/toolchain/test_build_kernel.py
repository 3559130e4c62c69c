"""The script that builds kernels, between two compilers that only note how they are called."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from baichuan2_tpu import toolchain

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="TPU-MLIR is for Linux")

SCRIPT = Path(toolchain.__file__).with_name("build_kernel.sh")
KERNEL_COMPILER = """#!/bin/sh
echo "$@" >>"$CALLS"
[ -s "$CODE" ] && exit "$(cat "$CODE")"
mkdir -p "$PPL_CACHE_PATH/7/device"
touch "$PPL_CACHE_PATH/7/device/jit_file.c"
"""
C_COMPILER = """#!/bin/sh
[ -s "$CC_CODE" ] && exit "$(cat "$CC_CODE")"
while [ "$1" != -o ]; do shift; done
echo kernel >"$2"
"""


@dataclass(frozen=True)
class Builder:
    """A folder with the two compilers, and the folder of kernels."""

    folder: Path

    @property
    def kernels(self) -> Path:
        return self.folder / "kernels"

    @property
    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def fail(self, code: int | None, compiler: str = "code") -> None:
        (self.folder / compiler).write_text("" if code is None else str(code))

    def build(self, chip: str = "tpu_6_0") -> int:
        command = [
            "sh",
            str(SCRIPT),
            "source text",
            "attention",
            "inc",
            f"{self.kernels}/7/",
            chip,
            "8,9",
            "1",
        ]
        environment = {
            "PATH": f"{self.folder}{os.pathsep}{os.environ['PATH']}",
            "CC": str(self.folder / "cc"),
            "CALLS": str(self.folder / "calls"),
            "CODE": str(self.folder / "code"),
            "CC_CODE": str(self.folder / "cc_code"),
            "PPL_CACHE_PATH": f"{self.kernels}/",
            "PPL_RUNTIME_PATH": "runtime",
            "TPUC_ROOT": "root",
        }
        return subprocess.run(command, env=environment, check=False, capture_output=True).returncode


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    for name, text in (("ppl-compile", KERNEL_COMPILER), ("cc", C_COMPILER)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "kernels" / "refused").mkdir(parents=True)
    (tmp_path / "calls").touch()
    return Builder(tmp_path)


def test_kernel_is_where_the_compiler_looks_for_it(builder: Builder) -> None:
    assert builder.build() == 0
    assert [path.name for path in (builder.kernels / "7" / "lib").iterdir()] == ["libattention.so"]
    assert builder.calls == [
        "source text --I inc --x ir --chip tpu_6_0 -D__tpu_6_0__ --O3 --desc --device "
        f"--const-arg 8,9 --function attention -o {builder.kernels}/7/"
    ]


@pytest.mark.parametrize("code", [17, 26])
def test_block_size_that_does_not_fit_is_tried_once(builder: Builder, code: int) -> None:
    builder.fail(code)
    assert [builder.build(), builder.build()] == [code, code]
    assert len(builder.calls) == 1


def test_other_failure_is_not_remembered(builder: Builder) -> None:
    builder.fail(137)
    assert builder.build() == 137
    builder.fail(None)
    assert builder.build() == 0


def test_failing_c_compiler_leaves_no_kernel(builder: Builder) -> None:
    builder.fail(1, "cc_code")
    assert builder.build() == 1
    assert list((builder.kernels / "7" / "lib").iterdir()) == []


def test_other_chip_is_refused(builder: Builder) -> None:
    assert builder.build(chip="tpub_7_1") == 2
    assert builder.calls == []
