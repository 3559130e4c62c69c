"""The machine that doctor runs on: Python, kernels, disk, processor, memory, installed software.

Not here: memory of a TPU (``tpu_memory``), reading files below another root (``system_files``), which kernels
our engine picks (``engine.cpu`` asks the processor itself).
"""

from __future__ import annotations

import importlib.util
import platform
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Self

from baichuan2_tpu import __version__
from baichuan2_tpu.doctor.system_files import Machine, Seen
from baichuan2_tpu.engine.cpu import available_kernels
from baichuan2_tpu.engine.device.sail_library import installed_version
from baichuan2_tpu.errors import BackendUnavailable, CompileError
from baichuan2_tpu.fetch import cache_folder
from baichuan2_tpu.memory import CGROUP_LIMITS
from baichuan2_tpu.toolchain import find_simulator, find_toolchain

__all__ = [
    "Host",
    "HostMemory",
    "Processor",
    "parse_limit",
    "parse_memory",
    "parse_processor",
    "read_host_memory",
    "read_limit",
    "read_processor",
]

_INSTRUCTIONS = (
    *("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni"),
    *("asimd", "asimddp", "i8mm", "fphp"),
)
"""In the spelling of /proc/cpuinfo: instruction sets that matrix kernels are, or could be, written for."""
_IMPLEMENTERS = {"0x41": "Arm", "0x61": "Apple", "0x48": "HiSilicon", "0x51": "Qualcomm"}
_PARTS = {
    "0xd03": "Cortex-A53",
    "0xd08": "Cortex-A72",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse N1",
    "0xd40": "Neoverse V1",
    "0xd49": "Neoverse N2",
    "0xd4f": "Neoverse V2",
}
"""Arm's own processors. Source: arch/arm64/include/asm/cputype.h of the Linux kernel."""
_NO_LIMIT = 1 << 60
"""Version 1 of cgroups writes a larger number where there is no limit."""


@dataclass(frozen=True, slots=True)
class Host:
    """Units: ``cache_free_bytes`` of the file system that the cache is on, or will be."""

    version: str
    """Of this package."""
    python: str
    architecture: str
    kernels: tuple[str, ...]
    """The fastest first; the engine takes that one."""
    cache: Path
    cache_free_bytes: int
    sail: str
    """Version of SOPHON-SAIL, or nothing where it is not installed."""
    toolchain: str
    """Version of TPU-MLIR, or nothing where no complete one is installed."""
    simulator: bool

    @classmethod
    def here(cls) -> Self:
        """Describe the machine this runs on."""
        cache = cache_folder()
        return cls(
            version=__version__,
            python=platform.python_version(),
            architecture=platform.machine(),
            kernels=available_kernels(),
            cache=cache,
            cache_free_bytes=shutil.disk_usage(_nearest_existing(cache)).free,
            sail=installed_version() if importlib.util.find_spec("sophon") else "",
            toolchain=_toolchain_version(),
            simulator=_has_simulator(),
        )


def _nearest_existing(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def _toolchain_version() -> str:
    try:
        return find_toolchain().version
    except CompileError:
        return ""


def _has_simulator() -> bool:
    try:
        find_simulator()
    except BackendUnavailable:
        return False
    return True


@dataclass(frozen=True, slots=True)
class Processor:
    """Units: ``threads`` counts what Linux calls processors."""

    model: str
    threads: int
    instructions: tuple[str, ...]


def read_processor(machine: Machine) -> Seen[Processor]:
    """Read /proc/cpuinfo."""
    return machine.parse("/proc/cpuinfo", parse_processor)


def parse_processor(text: str) -> Processor | None:
    """Read the text of /proc/cpuinfo, or return None when it names no processor."""
    threads = len(re.findall(r"^processor\s*:", text, re.MULTILINE))
    if threads == 0:
        return None
    flags = set((_field(text, "flags") or _field(text, "Features")).split())
    model = _field(text, "model name") or _name_arm(text)
    return Processor(model, threads, tuple(name for name in _INSTRUCTIONS if name in flags))


def _name_arm(text: str) -> str:
    """Name a processor by its numbers: Linux on Arm writes no model name."""
    maker = _IMPLEMENTERS.get(_field(text, "CPU implementer"), "unnamed")
    part = _PARTS.get(_field(text, "CPU part")) if maker == "Arm" else None
    return f"{maker} {part}" if part else maker


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Units: bytes."""

    total: int
    available: int


def read_host_memory(machine: Machine) -> Seen[HostMemory]:
    """Read /proc/meminfo."""
    return machine.parse("/proc/meminfo", parse_memory)


def read_limit(machine: Machine) -> int | None:
    """Return the smallest memory limit of the container, None where there is none."""
    limits = [machine.parse(str(path), parse_limit).value for path in CGROUP_LIMITS]
    return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=None)


def parse_memory(text: str) -> HostMemory | None:
    """Return total and available memory, or None when the text has no total."""
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"^(\w+):\s*(\d+) kB", text, re.MULTILINE)}
    if "MemTotal" not in sizes:
        return None
    return HostMemory(sizes["MemTotal"], sizes.get("MemAvailable", sizes.get("MemFree", 0)))


def parse_limit(text: str) -> int | None:
    """Return a number of bytes, or None for "max" and everything else: no limit."""
    return int(text) if re.fullmatch(r"[0-9]{1,20}", text) else None
