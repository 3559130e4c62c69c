"""How many threads this process can keep busy: cores in its affinity mask, and the quotas of its cgroups.

A core counts once, however many threads it runs: the kernels fill its vector units with one. Work goes in
small pieces to whoever is free, so cores of different speed work together, but a loop waits for its last
piece: cores with less than half of the fastest core's capacity would hold it up for longer than they help.

Source: Documentation/admin-guide/cgroup-v2.rst (``cpu.max``) and Documentation/scheduler/sched-bwc.rst
(``cpu.cfs_quota_us``, ``cpu.cfs_period_us``) of the Linux kernel; proc(5) and cgroups(7) for the paths;
Documentation/ABI/stable/sysfs-devices-system-cpu for siblings, and
Documentation/ABI/testing/sysfs-devices-system-cpu for ``cpu_capacity``, 1024 being the fastest core.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

__all__ = ["available_threads"]

_FULL_CAPACITY = 1024


def available_threads(root: Path = Path("/")) -> int:
    """Return the number of threads that are worth running; files are read below ``root``.

    A quota counts as whole processors, rounded up: half a processor still takes one thread.
    """
    quotas = [-(-quota // period) for quota, period in _read_quotas(root)]
    return max(1, min([_count_cores(root, os.sched_getaffinity(0)), *quotas]))


def _count_cores(root: Path, processors: Collection[int]) -> int:
    """Count the cores of these processors that are fast enough to help."""
    folder = root / "sys/devices/system/cpu"
    capacities = {number: _read_capacity(folder / f"cpu{number}") for number in processors}
    least = max(capacities.values(), default=0) / 2
    return len(
        {
            _read_siblings(folder / f"cpu{number}", number)
            for number, capacity in capacities.items()
            if capacity >= least
        }
    )


def _read_capacity(processor: Path) -> int:
    """Return the capacity of a processor; where the kernel has none, all are equal."""
    text = _read(processor / "cpu_capacity").strip()
    return int(text) if text.isdecimal() else _FULL_CAPACITY


def _read_siblings(processor: Path, number: int) -> str:
    """Return the list of the processors that are one core, as the kernel writes it; it is the core's name."""
    names = (processor / "topology" / name for name in ("core_cpus_list", "thread_siblings_list"))
    return next((text for text in (_read(path).strip() for path in names) if text), str(number))


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
