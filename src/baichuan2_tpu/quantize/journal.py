"""The record of an unfinished quantisation: what was asked for, of which source, and which files are done.

It lies beside those files and goes when all are done. A record of other settings or another source counts
as none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from baichuan2_tpu.config import Method, QuantizationConfig

__all__ = ["Journal", "hash_file", "write_atomically"]

_METHODS: dict[Method, str] = {"search": "range-search-1", "gptq": "gptq-2"}
"""Change whenever the same source, settings and text would give other bytes."""

_BLOCK_BYTES = 1 << 20


@dataclass(slots=True)
class Journal:
    """``task`` says what is being made; ``done`` maps finished files to their sha256."""

    path: Path
    task: dict[str, object]
    done: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def open(
        cls,
        path: Path,
        settings: QuantizationConfig,
        sources: Sequence[Path],
        calibration: Mapping[str, object] | None = None,
    ) -> Journal:
        """Go on with the record at ``path`` if it is of the same task, or begin a new one.

        Side effect: finished files are read and hashed; one that differs from its record is not done.
        """
        task: dict[str, object] = {
            "method": _METHODS[settings.method],
            "quantization": settings.to_json(),
            "sources": [_describe(source) for source in sources],
            "calibration": calibration,
        }
        return cls(path, task, _read_done(path, task))

    def add(self, file: Path) -> None:
        """Record a finished file."""
        self.done[file.name] = hash_file(file)
        text = json.dumps({"task": self.task, "done": self.done}, indent=2, sort_keys=True)
        write_atomically(self.path, text.encode())


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_bytes(content)
    beside.replace(path)


def _describe(path: Path) -> list[object]:
    """Describe a source file without reading it: its name, size and time of change."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _read_done(path: Path, task: dict[str, object]) -> dict[str, str]:
    """Return the finished files of the same task whose content is still what was recorded."""
    try:
        record: object = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}  # no record, or one cut off by a crash: begin again
    if not isinstance(record, dict) or cast("dict[str, object]", record).get("task") != task:
        return {}
    done = cast("dict[str, dict[str, str]]", record).get("done", {})
    files = {name: path.with_name(name) for name in done}
    return {
        name: done[name] for name, file in files.items() if file.is_file() and hash_file(file) == done[name]
    }
