"""What to call the machine that a benchmark ran on: its processor, or its board with the chip.

Not here: whether the machine is fit for a model (``doctor``).
Source: ``/proc/cpuinfo`` of Linux on x86, which names the processor; the device tree, with which ARM boards
name themselves.
"""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["chip_platform", "processor_platform"]

_CPUINFO = Path("proc/cpuinfo")
_BOARD = Path("proc/device-tree/model")


def processor_platform(threads: int, root: Path = Path("/")) -> str:
    """Return the processor, the board or at least the kind of machine, and the threads that ran on it."""
    name = _processor(root / _CPUINFO) or _board(root) or platform.machine()
    return f"{name}, {threads} thread{'' if threads == 1 else 's'}"


def chip_platform(chip: str, engine: str, *, is_simulated: bool, root: Path = Path("/")) -> str:
    """Return the chip with the board it is on, and the library that drove it."""
    if is_simulated:
        return f"simulator of {chip.upper()}: no measure of its speed"
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
