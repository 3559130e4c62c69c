"""How many processors this process may keep busy: its affinity mask, and the quotas of its cgroups.

Source: Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and Documentation/scheduler/sched-bwc.rst
(``cpu.cfs_quota_us``, ``cpu.cfs_period_us``) of the Linux kernel; proc(5) and cgroups(7) for the paths.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["available_threads"]


def available_threads(root: Path = Path("/")) -> int:
    """Return the number of threads that can run at once; files are read below ``root``.

    A quota counts as whole processors, rounded up: half a processor still takes one thread.
    """
    quotas = [-(-quota // period) for quota, period in _read_quotas(root)]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def _read_quotas(root: Path) -> Iterator[tuple[int, int]]:
    """Yield quota and period, in microseconds, of every cgroup of this process that has a quota."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            for folder in _folders(root / "sys/fs/cgroup", path):
                yield from _parse_quota(_read(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for folder in _folders(root / "sys/fs/cgroup/cpu", path):
                quota, period = (_read(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
                yield from _parse_quota(f"{quota} {period}")


def _folders(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folders of a cgroup and of those above it, whose quotas hold for it too.

    In a container the path can be the host's, of which only the mount itself is visible.
    """
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for count in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:count])


def _parse_quota(text: str) -> Iterator[tuple[int, int]]:
    """Yield the numbers of "quota period"; "max", -1 and whatever is no pair of numbers mean no quota."""
    words = text.split()
    if len(words) == 2 and all(word.isdecimal() and int(word) > 0 for word in words):
        yield int(words[0]), int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii", "replace")
    except OSError:
        return ""
