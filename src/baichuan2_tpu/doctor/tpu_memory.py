"""The memory a TPU has, by region: npu, vpu and vpp of a SoC, three heaps of a card.

A net's weights lie in any of the three, so what counts is their sum. Not here: changing them (``layout``).
Source: the ION summaries of BM1684X's kernel 5.4 (sophgo/sophon-tools, documentation of SE7); bm_debug.c of
libsophon 0.5.1; BmCoeff::Register of tpu-runtime 0.5.1, which allocates from all three heaps.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from baichuan2_tpu.doctor.system_files import Machine, Seen
from baichuan2_tpu.doctor.tpu import Tpu

__all__ = ["REGIONS", "Region", "Regions", "parse_capacity", "parse_heaps", "parse_region", "read_regions"]

REGIONS = ("npu", "vpu", "vpp")
"""Of a SoC, in the order that memory_edit.sh takes them."""

_SUMMARY = re.compile(r"heap size:\s*(\d{1,15}) bytes,\s*used:\s*(\d{1,15}) bytes")
_HEAP = re.compile(r"^heap(\d), size = 0x([0-9a-fA-F]{1,12}),", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Region:
    """Units: bytes; ``used`` None is not told."""

    name: str
    total: int
    used: int | None


@dataclass(frozen=True, slots=True)
class Regions:
    """The regions that could be read, and what was wrong with the others."""

    regions: tuple[Region, ...]
    problems: tuple[str, ...] = ()
    ddr_gib: int | None = None
    """GiB of a whole card's chip, firmware and all; None is not told."""

    @property
    def total(self) -> int:
        """Bytes of all regions."""
        return sum(one.total for one in self.regions)

    @property
    def free(self) -> int:
        """Bytes that nobody uses, as far as is told."""
        return self.total - sum(one.used or 0 for one in self.regions)


def read_regions(machine: Machine, tpu: Tpu) -> Regions:
    """Read the regions of a TPU; a machine without one has none."""
    if tpu.kind == "soc":
        return _read_soc(machine)
    if tpu.kind == "none":
        return Regions(())
    seen = machine.parsed(f"{tpu.proc}/heap", parse_heaps)
    if seen.value is None:
        return Regions((), (seen.told,))
    return Regions(seen.value, ddr_gib=machine.parsed(f"{tpu.proc}/ddr_capacity", parse_capacity).value)


def _read_soc(machine: Machine) -> Regions:
    seen: dict[str, Seen[tuple[int, int]]] = {
        name: machine.parsed(f"/sys/kernel/debug/ion/bm_{name}_heap_dump/summary", parse_region)
        for name in REGIONS
    }
    regions = tuple(Region(name, *one.value) for name, one in seen.items() if one.value is not None)
    return Regions(regions, tuple(one.told for one in seen.values() if one.value is None))


def parse_region(text: str) -> tuple[int, int] | None:
    """Return total and used bytes of one region, when no more is used than there is."""
    found = _SUMMARY.search(text)
    # More used than there is means that the text is not what we take it for.
    if found is None or int(found[2]) > int(found[1]):
        return None
    return int(found[1]), int(found[2])


def parse_heaps(text: str) -> tuple[Region, ...] | None:
    """Return the heaps of a card that are not empty."""
    found = [Region(f"heap{number}", int(size, 16), None) for number, size in _HEAP.findall(text)]
    return tuple(one for one in found if one.total) or None


def parse_capacity(text: str) -> int | None:
    """Return the last of "4g, 4g, 4g, 4g, 16g", which is the sum of the others."""
    found = re.fullmatch(r"(?:\d{1,3}g, ){4}(\d{1,3})g", text)
    return int(found[1]) if found else None
