"""The machine's own memory: what the kernel has, what is free, and what a container may take.

Not here: memory of a TPU (``regions``).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from baichuan2_tpu.doctor.system_files import Machine, Seen
from baichuan2_tpu.memory import CGROUP_LIMITS

__all__ = ["HostMemory", "parse_limit", "parse_memory", "read_host_memory", "read_limit"]

_NO_LIMIT = 1 << 60
"""What version 1 of cgroups writes where there is no limit is larger than this."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Units: bytes."""

    total: int
    available: int


def read_host_memory(machine: Machine) -> Seen[HostMemory]:
    """Read /proc/meminfo."""
    return machine.parsed("/proc/meminfo", parse_memory)


def read_limit(machine: Machine) -> int | None:
    """Return the least limit of the container, None where there is none."""
    seen = [machine.parsed(str(path), parse_limit).value for path in CGROUP_LIMITS]
    limits = [one for one in seen if one is not None and one < _NO_LIMIT]
    return min(limits, default=None)


def parse_memory(text: str) -> HostMemory | None:
    """Return total and available memory, or None when the text tells no total."""
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s*(\d+) kB", text, re.MULTILINE)}
    if "MemTotal" not in sizes:
        return None
    return HostMemory(sizes["MemTotal"], sizes.get("MemAvailable", sizes.get("MemFree", 0)))


def parse_limit(text: str) -> int | None:
    """Return a number of bytes; "max" and everything else is no limit."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None
