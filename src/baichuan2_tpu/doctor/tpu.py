"""Which TPU the machine has, if any, its present state, and the versions of the vendor's software.

The TPU is a PCIe card, or the machine itself is a SoC with one.
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
_PLAUSIBLE_CELSIUS = range(-55, 151)
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
    """A card's folder in /proc, whether or not its driver is loaded; empty for a SoC."""
    usage: str
    pci: str
    """Address of a card on the bus; empty where there is none."""

    @property
    def node(self) -> str:
        """The node that stands for the device."""
        return self.nodes[0] if self.nodes else ""


def find_tpu(machine: Machine, number: int = 0) -> Tpu:
    """Look for a SoC's TPU, then for a card's."""
    # A box whose driver is not loaded has no node yet; its device tree names the chip.
    if machine.find("/dev/bm-tpu*") or _is_soc(machine):
        count = len(machine.find("/dev/bm-tpu*"))
        usage = f"/sys/class/bm-tpu/bm-tpu{number}/device/npu_usage"
        return Tpu("soc", number, count, (f"/dev/bm-tpu{number}", "/dev/ion"), "", usage, "")
    cards, pci = machine.find("/dev/bm-sophon[0-9]*"), _find_pci(machine)
    proc = machine.find(f"/proc/bmsophon/card*/bmsophon{number}")
    if not (cards or pci or proc):
        return Tpu("none", number, 0, (), "", "", "")
    usage = f"/sys/class/bm-sophon/bm-sophon{number}/device/npu_usage"
    nodes = (f"/dev/bm-sophon{number}", "/dev/bmdev-ctl")
    folder = proc[0] if proc else f"/proc/bmsophon/card0/bmsophon{number}"
    return Tpu("pcie", number, len(cards), nodes, folder, usage, pci)


def _is_soc(machine: Machine) -> bool:
    """Tell whether the machine itself is a BM1684X, even one whose driver is not loaded."""
    board = machine.parse(_SOC_BOARD, str.strip).value or ""
    processor = machine.parse("/proc/cpuinfo", str.lower).value or ""
    return board.startswith("bm1684x") or "bm1684x" in processor


def _find_pci(machine: Machine) -> str:
    """Return the address of the first card on the bus, with or without a driver."""
    for path in machine.find("/sys/bus/pci/devices/*/device"):
        folder = path.removesuffix("/device")
        vendor = machine.parse(f"{folder}/vendor", str.lower).value
        if (vendor, machine.parse(path, str.lower).value) == (_PCI_VENDOR, _PCI_DEVICE):
            return folder.rpartition("/")[2]
    return ""


@dataclass(frozen=True, slots=True)
class Link:
    """A PCIe link. Units: ``generation`` 3 is 8 GT/s per lane."""

    generation: int
    lanes: int

    def __str__(self) -> str:
        return f"gen{self.generation} x{self.lanes}"


def read_chip(machine: Machine, tpu: Tpu) -> Seen[str]:
    """Return the chip in lower case: "bm1684x"."""
    if tpu.kind == "soc":
        return machine.parse(_SOC_BOARD, parse_chip)
    return machine.parse(f"{tpu.proc.rpartition('/')[0]}/chipid", parse_chip)


def read_board(machine: Machine, tpu: Tpu) -> str:
    """Return the name of the board, or nothing where it has none."""
    if tpu.kind == "soc":
        return (machine.parse(_SOC_BOARD, str.strip).value or "").partition(".dt")[0]
    return machine.parse(f"{tpu.proc.rpartition('/')[0]}/board_type", str.strip).value or ""


def read_status(machine: Machine, tpu: Tpu) -> Seen[str]:
    """Return what a card's driver calls the state of the chip: "Active" or "Fault"."""
    return machine.parse(f"{tpu.proc}/status", _parse_word)


def read_link(machine: Machine, tpu: Tpu) -> tuple[Seen[Link], Link | None]:
    """Return the present link of a card, and the best that the card is capable of."""
    return _read_link(machine, tpu, "link"), _read_link(machine, tpu, "cap").value


def read_temperature(machine: Machine, tpu: Tpu) -> Seen[int]:
    """Return the degrees Celsius of the chip."""
    if tpu.kind == "soc":
        return machine.parse(_SOC_TEMPERATURE, parse_thousandths)
    return machine.parse(f"{tpu.proc}/chip_temp", parse_celsius)


def read_usage(machine: Machine, tpu: Tpu) -> Seen[int]:
    """Return the percentage of the last half second in which the TPU was busy."""
    return machine.parse(tpu.usage, parse_usage)


def parse_chip(text: str) -> str | None:
    """Return the chip that a text begins with: bm1684x for "0x1684x", "0x1686" and "bm1684x_se7_v1.dtb"."""
    match = _CHIP.match(text)
    return f"bm{match[1].lower().replace('1686', '1684x')}" if match else None


def parse_link(speed: str, width: str) -> Link | None:
    """Return the link that "gen3" and "x16" describe."""
    generation, lanes = re.fullmatch(r"gen(\d{1,2})", speed), re.fullmatch(r"x(\d{1,2})", width)
    if generation is None or lanes is None or int(generation[1]) * int(lanes[1]) == 0:
        return None
    return Link(int(generation[1]), int(lanes[1]))


def parse_celsius(text: str) -> int | None:
    """Return the degrees of "45 C"."""
    match = re.fullmatch(r"(-?[0-9]{1,4}) C", text)
    return _check_celsius(int(match[1])) if match else None


def parse_thousandths(text: str) -> int | None:
    """Return the degrees of a number of thousandths of a degree, the unit of Linux's thermal zones."""
    return _check_celsius(int(text) // 1000) if re.fullmatch(r"-?[0-9]{1,8}", text) else None


def parse_usage(text: str) -> int | None:
    """Return the percentage of "usage:3 avusage:1"; older drivers quote the names."""
    match = re.match(r'"?usage"?:\s*([0-9]{1,3})\b', text)
    return int(match[1]) if match and int(match[1]) <= 100 else None


def _read_link(machine: Machine, tpu: Tpu, which: str) -> Seen[Link]:
    width = machine.parse(f"{tpu.proc}/pcie_{which}_width", _parse_word).value or ""
    return machine.parse(f"{tpu.proc}/pcie_{which}_speed", lambda speed: parse_link(speed, width))


def _parse_word(text: str) -> str | None:
    return text if re.fullmatch(r"\w{1,20}", text) else None


def _check_celsius(degrees: int) -> int | None:
    return degrees if degrees in _PLAUSIBLE_CELSIUS else None


def read_driver_version(machine: Machine, kind: DeviceKind) -> Seen[Version]:
    """Read the version of the loaded driver; on a machine without a TPU, look for that of a card."""
    return machine.parse(_DRIVER_FILES.get(kind, _DRIVER_FILES["pcie"]), parse_version)


def read_libsophon_version(machine: Machine) -> Seen[Version]:
    """Read the version off the link that libsophon's packages make to their folder."""
    link = machine.read_link(_LIBSOPHON_LINK)
    if link.value is None:
        return Seen(link.path, problem=link.problem)
    version = parse_version(link.value)
    return Seen(link.path, version) if version else Seen(link.path, problem=f"points to {link.value[:60]!r}")


def parse_version(text: str) -> Version | None:
    """Return the first version of three numbers in a text."""
    match = _VERSION.search(text)
    return tuple(int(number) for number in match.groups()) if match else None


def format_version(version: Version) -> str:
    """Join the numbers of a version with points."""
    return ".".join(str(number) for number in version)


def sdk_name(version: Version) -> str:
    """Return the name of the SDK with this version of libsophon, or nothing where it is not known."""
    return _SDKS.get(version, "")


LEAST_LIBSOPHON = parse_version(OLDEST_LIBSOPHON) or ()
"""Of the driver and of the libraries: the structs of older ones differ."""
