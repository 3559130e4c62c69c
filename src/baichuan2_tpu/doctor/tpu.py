"""Which TPU the machine has, if any, how it is at the moment, and the versions of the vendor's software.

The machine has a PCIe card, or is itself a SoC with a TPU.
Not here: who may use it (``judge_tpu``), its memory (``tpu_memory``), SAIL's version (``host``).
Source: bmlib_runtime.cpp of libsophon 0.5.1 for the nodes; bm_pcie_drv.c for the PCI numbers; bm_debug.c,
bm_attr.c and MODULE_VERSION of its driver; get_info.sh and the version table of sophgo/sophon-tools.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from baichuan2_tpu.doctor.system_files import Machine, Seen
from baichuan2_tpu.engine.device.bmrt_library import OLDEST_LIBSOPHON

__all__ = [
    "LEAST_LIBSOPHON",
    "DeviceKind",
    "Link",
    "Tpu",
    "Version",
    "find_tpu",
    "format_version",
    "parse_celsius",
    "parse_chip",
    "parse_link",
    "parse_thousandths",
    "parse_usage",
    "parse_version",
    "read_board",
    "read_chip",
    "read_driver_version",
    "read_libsophon_version",
    "read_link",
    "read_status",
    "read_temperature",
    "read_usage",
    "sdk_name",
]

DeviceKind = Literal["pcie", "soc", "none"]
_PCI_VENDOR, _PCI_DEVICE = "0x1f1c", "0x1686"

_SOC_TEMPERATURE = "/sys/class/thermal/thermal_zone0/temp"
_SOC_BOARD = "/proc/device-tree/info/file-name"
_CHIP = re.compile(r"(?:0x|bm)(1684x|1684|1686|1688)(?![0-9a-z])", re.IGNORECASE)
_SENSIBLE = range(-55, 151)
"""Degrees that a chip can have."""
Version = tuple[int, ...]
_SDKS: Mapping[Version, str] = {
    (0, 4, 8): "V23.05.01",
    (0, 4, 9): "V23.07.01",
    (0, 5, 0): "V23.10.01",
    (0, 5, 1): "V24.04.01",
    (0, 5, 2): "V25.03.01",
}
_VERSION = re.compile(r"(?<![\d.])(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?!\.?\d)")
_LIBSOPHON_LINK = "/opt/sophon/libsophon-current"
_DRIVER_FILES = {"pcie": "/proc/bmsophon/driver_version", "soc": "/sys/module/bmtpu/version"}


@dataclass(frozen=True, slots=True)
class Tpu:
    """What a machine has. Paths are those of device ``number``; ``count`` devices have a node."""

    kind: DeviceKind
    number: int
    count: int
    nodes: tuple[str, ...]
    """Every node that the engine opens."""
    proc: str
    """Where the driver of a card tells of it, or would; empty for a SoC."""
    usage: str
    pci: str
    """Address of a card on the bus; empty where none is seen."""

    @property
    def node(self) -> str:
        """The node that stands for the device."""
        return self.nodes[0] if self.nodes else ""


def find_tpu(machine: Machine, number: int = 0) -> Tpu:
    """Look for a SoC's TPU, then for a card's."""
    # A box whose driver is not loaded has no node yet; its device tree names the chip.
    if machine.matches("/dev/bm-tpu*") or _is_soc(machine):
        count = len(machine.matches("/dev/bm-tpu*"))
        usage = f"/sys/class/bm-tpu/bm-tpu{number}/device/npu_usage"
        return Tpu("soc", number, count, (f"/dev/bm-tpu{number}", "/dev/ion"), "", usage, "")
    cards, pci = machine.matches("/dev/bm-sophon[0-9]*"), _find_pci(machine)
    proc = machine.matches(f"/proc/bmsophon/card*/bmsophon{number}")
    if not (cards or pci or proc):
        return Tpu("none", number, 0, (), "", "", "")
    usage = f"/sys/class/bm-sophon/bm-sophon{number}/device/npu_usage"
    nodes = (f"/dev/bm-sophon{number}", "/dev/bmdev-ctl")
    told = proc[0] if proc else f"/proc/bmsophon/card0/bmsophon{number}"
    return Tpu("pcie", number, len(cards), nodes, told, usage, pci)


def _is_soc(machine: Machine) -> bool:
    """Tell whether the machine itself is a BM1684X, even one whose driver is not loaded."""
    told = machine.parsed("/proc/device-tree/info/file-name", str.strip).value or ""
    name = machine.parsed("/proc/cpuinfo", str.lower).value or ""
    return told.startswith("bm1684x") or "bm1684x" in name


def _find_pci(machine: Machine) -> str:
    """Return the address of the first card on the bus, with or without a driver."""
    for path in machine.matches("/sys/bus/pci/devices/*/device"):
        folder = path.removesuffix("/device")
        vendor = machine.parsed(f"{folder}/vendor", str.lower).value
        if (vendor, machine.parsed(path, str.lower).value) == (_PCI_VENDOR, _PCI_DEVICE):
            return folder.rpartition("/")[2]
    return ""


@dataclass(frozen=True, slots=True)
class Link:
    """A PCIe link. Units: ``generation`` 3 is 8 GT/s a lane."""

    generation: int
    lanes: int

    def __str__(self) -> str:
        return f"gen{self.generation} x{self.lanes}"


def read_chip(machine: Machine, tpu: Tpu) -> Seen[str]:
    """Return the chip in lower case: "bm1684x"."""
    if tpu.kind == "soc":
        return machine.parsed(_SOC_BOARD, parse_chip)
    return machine.parsed(f"{tpu.proc.rpartition('/')[0]}/chipid", parse_chip)


def read_board(machine: Machine, tpu: Tpu) -> str:
    """Return the name of the board, or nothing where none is told."""
    if tpu.kind == "soc":
        return (machine.parsed(_SOC_BOARD, str.strip).value or "").partition(".dt")[0]
    return machine.parsed(f"{tpu.proc.rpartition('/')[0]}/board_type", str.strip).value or ""


def read_status(machine: Machine, tpu: Tpu) -> Seen[str]:
    """Return whether a card's driver calls the chip "Active" or "Fault"."""
    return machine.parsed(f"{tpu.proc}/status", _word)


def read_link(machine: Machine, tpu: Tpu) -> tuple[Seen[Link], Link | None]:
    """Return the link of a card as it is, and as the card could have it."""
    return _read_link(machine, tpu, "link"), _read_link(machine, tpu, "cap").value


def read_temperature(machine: Machine, tpu: Tpu) -> Seen[int]:
    """Return the degrees Celsius of the chip."""
    if tpu.kind == "soc":
        return machine.parsed(_SOC_TEMPERATURE, parse_thousandths)
    return machine.parsed(f"{tpu.proc}/chip_temp", parse_celsius)


def read_usage(machine: Machine, tpu: Tpu) -> Seen[int]:
    """Return the percentage of the last half second in which the TPU worked."""
    return machine.parsed(tpu.usage, parse_usage)


def parse_chip(text: str) -> str | None:
    """Return the chip that a text begins with: "0x1684x", "0x1686" and "bm1684x_se7_v1.dtb" are one."""
    found = _CHIP.match(text)
    return f"bm{found[1].lower().replace('1686', '1684x')}" if found else None


def parse_link(speed: str, width: str) -> Link | None:
    """Return the link that "gen3" and "x16" describe."""
    generation, lanes = re.fullmatch(r"gen(\d{1,2})", speed), re.fullmatch(r"x(\d{1,2})", width)
    if generation is None or lanes is None or int(generation[1]) * int(lanes[1]) == 0:
        return None
    return Link(int(generation[1]), int(lanes[1]))


def parse_celsius(text: str) -> int | None:
    """Return the degrees of "45 C"."""
    found = re.fullmatch(r"(-?[0-9]{1,4}) C", text)
    return _sensible(int(found[1])) if found else None


def parse_thousandths(text: str) -> int | None:
    """Return the degrees of thousandths of a degree, as the kernel's thermal zones give them."""
    return _sensible(int(text) // 1000) if re.fullmatch(r"-?[0-9]{1,8}", text) else None


def parse_usage(text: str) -> int | None:
    """Return the percentage of "usage:3 avusage:1"; older drivers quote the names."""
    found = re.match(r'"?usage"?:\s*([0-9]{1,3})\b', text)
    return int(found[1]) if found and int(found[1]) <= 100 else None


def _read_link(machine: Machine, tpu: Tpu, which: str) -> Seen[Link]:
    width = machine.parsed(f"{tpu.proc}/pcie_{which}_width", _word).value or ""
    return machine.parsed(f"{tpu.proc}/pcie_{which}_speed", lambda speed: parse_link(speed, width))


def _word(text: str) -> str | None:
    return text if re.fullmatch(r"\w{1,20}", text) else None


def _sensible(degrees: int) -> int | None:
    return degrees if degrees in _SENSIBLE else None


def read_driver_version(machine: Machine, kind: DeviceKind) -> Seen[Version]:
    """Read what the loaded driver says of itself; of a machine without a TPU the card's is looked for."""
    return machine.parsed(_DRIVER_FILES.get(kind, _DRIVER_FILES["pcie"]), parse_version)


def read_libsophon_version(machine: Machine) -> Seen[Version]:
    """Read the version off the link that libsophon's packages set to the folder they install."""
    link = machine.link(_LIBSOPHON_LINK)
    if link.value is None:
        return Seen(link.path, problem=link.problem)
    version = parse_version(link.value)
    return Seen(link.path, version) if version else Seen(link.path, problem=f"leads to {link.value[:60]!r}")


def parse_version(text: str) -> Version | None:
    """Return the first version of three numbers in a text."""
    found = _VERSION.search(text)
    return tuple(int(one) for one in found.groups()) if found else None


def format_version(version: Version) -> str:
    """Write a version with points."""
    return ".".join(str(one) for one in version)


def sdk_name(version: Version) -> str:
    """Return the SDK that a libsophon came with, or nothing where it is not known."""
    return _SDKS.get(version, "")


LEAST_LIBSOPHON = parse_version(OLDEST_LIBSOPHON) or ()
"""Of the driver and of the libraries: older ones have other structs."""
