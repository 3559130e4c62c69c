"""The memory a TPU has, by region, and how a SoC's memory could be divided for what a model needs.

A SoC has the regions npu, vpu and vpp, a card three heaps. A net's weights lie in any of the three, so what
counts is their sum. Limits and rules of a division are those of memory_edit.sh, so that it accepts the
numbers. Nothing is changed.
Source: the ION summaries of BM1684X's kernel 5.4 (sophgo/sophon-tools, documentation of SE7); bm_debug.c of
libsophon 0.5.1; BmCoeff::Register of tpu-runtime 0.5.1, which allocates from all three heaps; memory_edit.sh
2.12 of sophgo/sophon-tools: npu lies in the first two DDR ranges behind the firmware, vpu in the third beside
the kernel, vpp in the fourth.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from baichuan2_tpu.doctor.system_files import Machine, Seen
from baichuan2_tpu.doctor.tpu import Tpu

__all__ = [
    "MIB",
    "REGIONS",
    "Layout",
    "Limits",
    "Region",
    "Regions",
    "parse_capacity",
    "parse_heaps",
    "parse_ranges",
    "parse_region",
    "plan_layout",
    "read_limits",
    "read_regions",
]

REGIONS = ("npu", "vpu", "vpp")
"""Of a SoC, in the order that memory_edit.sh takes them."""
_SUMMARY = re.compile(r"heap size:\s*(\d{1,15}) bytes,\s*used:\s*(\d{1,15}) bytes")
_HEAP = re.compile(r"^heap(\d), size = 0x([0-9a-fA-F]{1,12}),", re.MULTILINE)

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
class Region:
    """Units: bytes; ``used`` is None where it is not known."""

    name: str
    total: int
    used: int | None


@dataclass(frozen=True, slots=True)
class Regions:
    """The regions that could be read, and the problems of the others."""

    regions: tuple[Region, ...]
    problems: tuple[str, ...] = ()
    ddr_gib: int | None = None
    """GiB of one chip of a card, with its firmware; None where it is not known."""

    @property
    def total(self) -> int:
        """Bytes of all regions."""
        return sum(region.total for region in self.regions)

    @property
    def free(self) -> int:
        """Bytes that nobody uses, as far as that is known."""
        return self.total - sum(region.used or 0 for region in self.regions)


def read_regions(machine: Machine, tpu: Tpu) -> Regions:
    """Read the regions of a TPU; a machine without one has none."""
    if tpu.kind == "soc":
        return _read_soc(machine)
    if tpu.kind == "none":
        return Regions(())
    seen = machine.parse(f"{tpu.proc}/heap", parse_heaps)
    if seen.value is None:
        return Regions((), (seen.explanation,))
    return Regions(seen.value, ddr_gib=machine.parse(f"{tpu.proc}/ddr_capacity", parse_capacity).value)


def _read_soc(machine: Machine) -> Regions:
    seen: dict[str, Seen[tuple[int, int]]] = {
        name: machine.parse(f"/sys/kernel/debug/ion/bm_{name}_heap_dump/summary", parse_region)
        for name in REGIONS
    }
    regions = tuple(Region(name, *sizes.value) for name, sizes in seen.items() if sizes.value is not None)
    return Regions(regions, tuple(sizes.explanation for sizes in seen.values() if sizes.value is None))


def parse_region(text: str) -> tuple[int, int] | None:
    """Return total and used bytes of one region, or None where the text does not give both."""
    match = _SUMMARY.search(text)
    # More bytes used than there are: the text has another form than we know.
    if match is None or int(match[2]) > int(match[1]):
        return None
    return int(match[1]), int(match[2])


def parse_heaps(text: str) -> tuple[Region, ...] | None:
    """Return the heaps of a card that are not empty."""
    heaps = [Region(f"heap{number}", int(size, 16), None) for number, size in _HEAP.findall(text)]
    return tuple(heap for heap in heaps if heap.total) or None


def parse_capacity(text: str) -> int | None:
    """Return the last of "4g, 4g, 4g, 4g, 16g", which is the sum of the others."""
    match = re.fullmatch(r"(?:\d{1,3}g, ){4}(\d{1,3})g", text)
    return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of the three regions. Units: MiB, as in memory_edit.sh's arguments."""

    npu: int
    vpu: int
    vpp: int

    @property
    def total(self) -> int:
        """MiB of all three."""
        return self.npu + self.vpu + self.vpp


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest regions of a board; where ``is_read`` is False, those of the usual 16 GB board."""

    largest: Layout
    is_read: bool


_USUAL = Limits(Layout(7615, 3071, 4096), is_read=False)
"""What memory_edit.sh prints on a 16 GB board (2.9: 7615, 3072, 4096; since 2.12 one MiB less of vpu)."""


def read_limits(machine: Machine) -> Limits:
    """Compute the limits from the device tree, or take the usual board's where its form is not known."""
    paths = machine.find("/proc/device-tree/memory*/reg")
    ranges = _read_ranges(machine, paths[0]).value if paths else None
    if ranges is None or len(ranges) not in (3, 4):
        return _USUAL
    # Three or four ranges: of four, the first two together hold npu.
    sizes = [size for _, size in ranges]
    low, third, fourth = sum(sizes[:-2]), sizes[-2], sizes[-1]
    firmware = sum(_read_reserved(machine, name)[1] for name in _FIRMWARE)
    kernel_bytes = _KERNEL_BYTES + _VPU_TOP_BYTES
    if _read_reserved(machine, "ramoops_mem")[0] != _SEPARATE_RAMOOPS:
        kernel_bytes += _VPU_FIRMWARE_BYTES
    largest = Layout((low - firmware) // MIB, (third - kernel_bytes) // MIB, fourth // MIB)
    if firmware == 0 or min(largest.npu, largest.vpu, largest.vpp) <= 0:
        return _USUAL
    return Limits(largest, is_read=True)


def plan_layout(now: Layout, limits: Limits, need_bytes: int) -> Layout | None:
    """Return regions that hold ``need_bytes``, or None where the board cannot.

    npu grows first, then vpp, then vpu, and none more than it must: the system loses what they take.
    """
    short = -(-need_bytes // MIB) - now.total
    npu = _grow(now.npu, limits.largest.npu, short)
    short -= npu - now.npu
    vpp = _grow(now.vpp, limits.largest.vpp, short)
    short -= vpp - now.vpp
    vpu = _grow(now.vpu, limits.largest.vpu, short)
    short -= vpu - now.vpu
    return None if short > 0 else Layout(npu, vpu, vpp)


def _grow(now: int, most: int, short: int) -> int:
    return max(now, min(most, now + max(0, short)))


def _read_ranges(machine: Machine, path: str) -> Seen[list[Range]]:
    content = machine.read_bytes(path)
    ranges = None if content.value is None else parse_ranges(content.value)
    return Seen(path, ranges) if ranges else Seen(path, problem=content.problem or "is not a list of ranges")


def _read_reserved(machine: Machine, name: str) -> Range:
    """Return start and bytes of a reserved range, zeros where there is none."""
    paths = [*machine.find(f"{_RESERVED}/{name}/reg"), *machine.find(f"{_RESERVED}/{name}@*/reg")]
    ranges = _read_ranges(machine, paths[0]).value if paths else None
    return ranges[0] if ranges else (0, 0)


def parse_ranges(cells: bytes) -> list[Range] | None:
    """Return (start, bytes) of each range in a "reg" with two cells each for both."""
    if not cells or len(cells) % 16:
        return None
    return list(struct.iter_unpack(">QQ", cells))
