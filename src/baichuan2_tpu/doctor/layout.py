"""How a SoC's memory could be divided: the limits of this board, and regions for what a model needs.

The rules are those of memory_edit.sh, so that it takes the numbers. Nothing is changed here, or ever.
Source: memory_edit.sh 2.12 of sophgo/sophon-tools: npu lies in the first two DDR ranges behind the firmware,
vpu in the third beside the kernel, vpp in the fourth.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from baichuan2_tpu.doctor.system_files import Machine, Seen

__all__ = ["MIB", "Layout", "Limits", "parse_ranges", "plan_layout", "read_limits"]

MIB = 1 << 20

_KERNEL_BYTES = 1024 * MIB
_VPU_FIRMWARE_BYTES = 128 * MIB
_VPU_TOP_BYTES = MIB
_SEPARATE_RAMOOPS = 0x3_1400_0000
"""Boards with the crash log here have the VPU's firmware beside the kernel, not above it."""
_FIRMWARE = ("armfw_mem", "arm_mem", "smmu_mem")
_RESERVED = "/proc/device-tree/reserved-memory"

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of the three regions. Units: MiB, as memory_edit.sh takes them."""

    npu: int
    vpu: int
    vpp: int

    @property
    def total(self) -> int:
        """MiB of all three."""
        return self.npu + self.vpu + self.vpp


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest regions of a board; ``is_read`` is False for those of the usual 16 GB board."""

    largest: Layout
    is_read: bool


_USUAL = Limits(Layout(7615, 3071, 4096), is_read=False)
"""What memory_edit.sh prints on a 16 GB board (2.9: 7615, 3072, 4096; since 2.12 one MiB less of vpu)."""


def read_limits(machine: Machine) -> Limits:
    """Compute the limits from the device tree, or take those of the usual board where it is not as known."""
    paths = machine.matches("/proc/device-tree/memory*/reg")
    ranges = _read_ranges(machine, paths[0]).value if paths else None
    if ranges is None or len(ranges) not in (3, 4):
        return _USUAL
    # Three or four ranges: the first two of four are one for npu.
    sizes = [size for _, size in ranges]
    low, third, fourth = sum(sizes[:-2]), sizes[-2], sizes[-1]
    firmware = sum(_reserved(machine, name)[1] for name in _FIRMWARE)
    beside = _KERNEL_BYTES + _VPU_TOP_BYTES
    if _reserved(machine, "ramoops_mem")[0] != _SEPARATE_RAMOOPS:
        beside += _VPU_FIRMWARE_BYTES
    largest = Layout((low - firmware) // MIB, (third - beside) // MIB, fourth // MIB)
    if firmware == 0 or min(largest.npu, largest.vpu, largest.vpp) <= 0:
        return _USUAL
    return Limits(largest, is_read=True)


def plan_layout(now: Layout, limits: Limits, need_bytes: int) -> Layout | None:
    """Return regions that hold ``need_bytes``, or None where the board cannot.

    npu grows first, then vpp, then vpu, and none more than it must: what they take, the system loses.
    """
    short = -(-need_bytes // MIB) - now.total
    npu = _grown(now.npu, limits.largest.npu, short)
    short -= npu - now.npu
    vpp = _grown(now.vpp, limits.largest.vpp, short)
    short -= vpp - now.vpp
    vpu = _grown(now.vpu, limits.largest.vpu, short)
    short -= vpu - now.vpu
    return None if short > 0 else Layout(npu, vpu, vpp)


def _grown(now: int, most: int, short: int) -> int:
    return max(now, min(most, now + max(0, short)))


def _read_ranges(machine: Machine, path: str) -> Seen[list[Range]]:
    content = machine.content(path)
    ranges = None if content.value is None else parse_ranges(content.value)
    return Seen(path, ranges) if ranges else Seen(path, problem=content.problem or "is odd")


def _reserved(machine: Machine, name: str) -> Range:
    """Return start and size of a reserved range, zeros where there is none."""
    paths = [*machine.matches(f"{_RESERVED}/{name}/reg"), *machine.matches(f"{_RESERVED}/{name}@*/reg")]
    ranges = _read_ranges(machine, paths[0]).value if paths else None
    return ranges[0] if ranges else (0, 0)


def parse_ranges(cells: bytes) -> list[Range] | None:
    """Return (start, bytes) of each range in a "reg" with two cells each for both."""
    if not cells or len(cells) % 16:
        return None
    return list(struct.iter_unpack(">QQ", cells))
