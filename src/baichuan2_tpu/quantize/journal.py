"""The record of an unfinished quantisation: what was asked for, of which source, and which files are done.

It lies beside those files and goes when all are done. A record of other settings or another source counts
as none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from baichuan2_tpu.config import Method, QuantizationConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.files import check_plain_name, digest_file, read_json, read_values, write_json

__all__ = ["Journal"]

_METHODS: dict[Method, str] = {"search": "range-search-1", "scale": "scale-1", "gptq": "gptq-3"}
"""Change whenever the same source, settings and text would give other bytes."""


@dataclass(frozen=True, slots=True)
class _Stored:
    """What the file holds."""

    task: Mapping[str, object]
    done: Mapping[str, str]


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
        *,
        adapters: Sequence[Mapping[str, object]] = (),
    ) -> Journal:
        """Continue the record at ``path`` if it is of the same task, or begin a new one.

        Side effect: finished files are read and hashed; one that differs from its record is not done.
        """
        task: dict[str, object] = {
            "method": _METHODS[settings.method],
            "quantization": settings.to_json(),
            "sources": [_describe(source) for source in sources],
            "calibration": calibration,
            "adapters": [*adapters],
        }
        return cls(path, task, _read_done(path, task))

    def add(self, file: Path) -> None:
        """Record a finished file."""
        self.done[file.name] = digest_file(file).sha256
        write_json(self.path, {"task": self.task, "done": self.done})


def _describe(path: Path) -> list[object]:
    """Describe a source file without reading it: its name, size and time of change."""
    status = path.stat()
    return [path.name, status.st_size, status.st_mtime_ns]


def _read_done(path: Path, task: dict[str, object]) -> dict[str, str]:
    """Return the finished files of the same task whose content is still what was recorded."""
    try:
        record = read_values(_Stored, read_json(path))
        for name in record.done:
            check_plain_name(name)
    except (CheckpointError, ValueError):
        return {}  # no record, or one that is damaged: begin again
    if record.task != task:
        return {}
    files = {name: path.with_name(name) for name in record.done}
    return {
        name: record.done[name]
        for name, file in files.items()
        if file.is_file() and digest_file(file).sha256 == record.done[name]
    }
