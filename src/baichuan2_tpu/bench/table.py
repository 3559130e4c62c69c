"""The performance table that the vendor's sample shows for its builds, for whatever was measured here.

Not here: measuring (``cpu``, ``compiled``), whether the machine is fit for a model (``doctor``).
Source: "程序性能" in the README of ``sample/Baichuan2`` of sophgo/sophon-demo: platform, model, first token
latency in seconds, tokens per second; ``/proc/cpuinfo`` of Linux on x86, which names the processor; the
device tree, with which ARM boards name themselves.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from baichuan2_tpu.markdown import markdown_table

__all__ = ["PerformanceRow", "chip_platform", "performance_table", "processor_platform"]

_COLUMNS = ("platform", "model", "bits", "first token (s)", "tokens per second")

_CPUINFO = Path("proc/cpuinfo")
_BOARD = Path("proc/device-tree/model")


@dataclass(frozen=True, slots=True)
class PerformanceRow:
    """One line of the table, all medians; ``bits`` None where a bmodel does not say."""

    platform: str
    model: str
    bits: int | None
    first_token_s: float
    tok_per_s: float

    def cells(self) -> tuple[str, ...]:
        """Return the cells, with as many digits as the vendor's."""
        bits = "" if self.bits is None else str(self.bits)
        return self.platform, self.model, bits, f"{self.first_token_s:.3f}", f"{self.tok_per_s:.3f}"


def performance_table(rows: Sequence[PerformanceRow]) -> list[str]:
    """Return the lines of a Markdown table."""
    return markdown_table(_COLUMNS, [row.cells() for row in rows])


def processor_platform(threads: int, root: Path = Path("/")) -> str:
    """Return the processor, the board or at least the kind of machine, and the threads that ran on it."""
    name = _processor(root / _CPUINFO) or _board(root) or platform.machine()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def chip_platform(chip: str, engine: str, *, is_simulated: bool, root: Path = Path("/")) -> str:
    """Return the chip with the board it is on, and the library that drove it."""
    if is_simulated:
        return f"simulator of {chip.upper()}: not a measure of its speed"
    board = _board(root)
    return f"{chip.upper()} on {board}, {engine}" if board else f"{chip.upper()}, {engine}"


def _processor(cpuinfo: Path) -> str:
    """Return the first model name, which ARM's kernel does not write."""
    if not cpuinfo.is_file():
        return ""
    lines = cpuinfo.read_text("utf-8", "replace").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "")


def _board(root: Path) -> str:
    """Return the name in the device tree, a string of C; none where there is no such tree."""
    path = root / _BOARD
    return path.read_text("utf-8", "replace").rstrip("\0\n") if path.is_file() else ""
