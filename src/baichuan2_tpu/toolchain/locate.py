"""Find an installed TPU-MLIR and its simulator, and make the environment its programs run in.

Not here: installing (``install``), running the programs (``compile``), loading the simulator (``engine``).
Source: variables read by tpu_mlir 1.30.2's libraries and by deps/common/host/src/ppl_jit.cpp in its wheel.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from baichuan2_tpu.errors import BackendUnavailable, CompileError
from baichuan2_tpu.fetch import cache_folder
from baichuan2_tpu.toolchain.contents import SIMULATOR_FOLDER, SIMULATOR_LIBRARIES, VERSION
from baichuan2_tpu.toolchain.record import Kind, Record
from baichuan2_tpu.toolchain.requirements import find_c_compiler, missing_for_compiler, missing_for_simulator

__all__ = ["KERNELS", "Toolchain", "default_root", "find_simulator", "find_toolchain"]

KERNELS = "kernels"
"""Folder of an installation for the kernels that are built while nets are compiled."""

_KERNELS_KEPT = 1_000_000
"""tpuc-opt deletes the oldest kernels above this number, even one that another process is loading."""


@dataclass(frozen=True, slots=True)
class Toolchain:
    """An installed TPU-MLIR: where its programs are, and how to call them."""

    root: Path
    version: str

    @property
    def tpuc_opt(self) -> Path:
        """The compiler's passes."""
        return self.root / "bin" / "tpuc-opt"

    @property
    def model_tool(self) -> Path:
        """The program that combines bmodels."""
        return self.root / "bin" / "model_tool"

    def environment(self) -> dict[str, str]:
        """Return the whole environment of a child process; of the caller's only TMPDIR is in it.

        Kernels built while a net is compiled are kept in the toolchain's own folder, so that two compilers
        may work at once and the next one finds them.
        """
        kernel_compiler = self.root / "cross_toolchains" / "ppl_compile"
        c_compiler = find_c_compiler() or ""
        folders = [str(self.root / "bin"), str(kernel_compiler / "bin")]
        folders += [str(Path(c_compiler).parent), "/usr/bin", "/bin"]
        environment = {
            "CC": c_compiler,
            "PATH": os.pathsep.join(dict.fromkeys(folders)),
            "TPUC_ROOT": str(self.root),
            "PPL_PROJECT_ROOT": str(kernel_compiler),
            "PPL_RUNTIME_PATH": str(kernel_compiler / "deps"),
            "PPL_CACHE_PATH": f"{self.root / KERNELS}/",
            "PPL_WORK_PATH": str(self.root),
            "HOME": str(self.root),
            "CACHE_ITEMS": str(_KERNELS_KEPT),
        }
        if "TMPDIR" in os.environ:
            environment["TMPDIR"] = os.environ["TMPDIR"]
        return environment


def default_root(kind: Kind) -> Path:
    """Return the folder an installation goes to when the user names none."""
    name = {"compiler": "tpu-mlir", "simulator": "simulator"}[kind]
    return cache_folder() / "toolchain" / f"{name}-{VERSION}"


def find_toolchain(path: Path | None = None) -> Toolchain:
    """Return the toolchain installed in ``path``, or in the user's cache.

    Raises: CompileError saying what is missing and the next step.
    """
    missing = missing_for_compiler()
    if missing is not None:
        raise CompileError(missing)
    root = (path or default_root("compiler")).absolute()
    command = "baichuan2 toolchain install" + (f" --path {path}" if path else "")
    record = Record.read(root)
    if record is None or record.kind != "compiler":
        held = "only the simulator" if record else "no TPU-MLIR"
        raise CompileError(f"{root}: holds {held}; run: {command}")
    if record.version != VERSION:
        raise CompileError(f"{root}: holds TPU-MLIR {record.version}, {VERSION} is needed; run: {command}")
    absent = record.first_missing(root)
    if absent is not None:
        raise CompileError(f"{root / absent}: is missing or of a wrong size; run: {command}")
    return Toolchain(root, record.version)


def find_simulator(path: Path | None = None) -> Path:
    """Return the folder with the simulator's libraries: of ``path``, or in the user's cache.

    ``path`` may be an installation, or a folder that holds the libraries themselves.
    Raises: BackendUnavailable saying what is missing and the next step.
    """
    missing = missing_for_simulator()
    if missing is not None:
        raise BackendUnavailable(missing)
    roots = [path.absolute()] if path else [default_root("compiler"), default_root("simulator")]
    for folder in (folder for root in roots for folder in (root / SIMULATOR_FOLDER, root / "lib", root)):
        if all((folder / name).is_file() for name in SIMULATOR_LIBRARIES):
            return folder
    names = ", ".join(SIMULATOR_LIBRARIES)
    raise BackendUnavailable(
        f"{roots[-1]}: does not hold the simulator ({names}); "
        "run: baichuan2 toolchain install, or with --simulator-only"
    )
