"""A machine out of a recorded tree, with what files cannot hold in ``record.json``; and a fixed host."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from baichuan2_tpu.doctor import Host, Machine
from baichuan2_tpu.doctor.system_files import MISSING, NEEDS_ROOT, Node, Seen

__all__ = ["HOST", "MACHINES", "RecordedMachine", "copy_machine"]

MACHINES = Path(__file__).resolve().parents[1] / "machines"

HOST = Host(
    version="0.1.0",
    python="3.11.9",
    architecture="x86_64",
    kernels=("avx2", "scalar"),
    cache=Path("/home/user/.cache/baichuan2-tpu"),
    cache_free_bytes=250_000_000_000,
    sail="",
    toolchain="",
    simulator=False,
)


class RecordedMachine(Machine):
    """``nodes`` of the record are device nodes; paths below one of ``needs_root`` cannot be read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        record = json.loads((root / "record.json").read_text("utf-8"))
        self._nodes: dict[str, dict[str, Any]] = record["nodes"]
        self._needs_root: tuple[str, ...] = tuple(record["needs_root"])

    def read_bytes(self, path: str) -> Seen[bytes]:
        if self._needs_root and path.startswith(self._needs_root):
            return Seen(path, problem=NEEDS_ROOT)
        return super().read_bytes(path)

    def read_node(self, path: str) -> Seen[Node]:
        recorded = self._nodes.get(path)
        return Seen(path, Node(**recorded)) if recorded else Seen(path, problem=MISSING)


def copy_machine(name: str, to: Path) -> Path:
    """Copy a recorded tree, to change it."""
    return Path(shutil.copytree(MACHINES / name, to / name, symlinks=True))
