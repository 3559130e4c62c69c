"""What is installed and whether it can be used, without using it. Not here: printing it (``cli``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baichuan2_tpu.errors import BackendUnavailable
from baichuan2_tpu.toolchain.contents import VERSION
from baichuan2_tpu.toolchain.locate import KERNELS, default_root, find_simulator
from baichuan2_tpu.toolchain.record import Record
from baichuan2_tpu.toolchain.requirements import missing_for_compiler

__all__ = ["Status", "read_status"]


@dataclass(frozen=True, slots=True)
class Status:
    """What a person wants to know of an installation."""

    compiler: str
    """"ready", or what is missing and the next step."""
    simulator: str
    """Its folder, or what is missing and the next step."""
    path: str
    version: str
    files_bytes: int
    kernels: int
    """Kernels built so far while nets were compiled."""
    wheel_sha256: str


def read_status(path: Path | None = None) -> Status:
    """Describe the installation in ``path``, or in the user's cache; every file's digest is compared."""
    root = (path or default_root("compiler")).absolute()
    record = Record.read(root)
    try:
        simulator = str(find_simulator(path))
    except BackendUnavailable as error:
        simulator = str(error)
    return Status(
        compiler=_compiler_state(root, record),
        simulator=simulator,
        path=str(root),
        version=record.version if record else "",
        files_bytes=record.nbytes if record else 0,
        kernels=len(list((root / KERNELS).glob("*/compiled"))),
        wheel_sha256=record.wheel_sha256 if record else "",
    )


def _compiler_state(root: Path, record: Record | None) -> str:
    missing = missing_for_compiler()
    if missing is not None:
        return missing
    if record is None or record.kind != "compiler":
        return "not installed; run: baichuan2 toolchain install"
    damaged = record.first_damaged(root)
    if damaged is not None:
        return f"{damaged} is missing or damaged; run: baichuan2 toolchain install"
    if record.version != VERSION:
        return f"version {record.version} is installed, {VERSION} is needed; run: baichuan2 toolchain install"
    return "ready"
