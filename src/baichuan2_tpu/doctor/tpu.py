"""Which TPU the machine has, if any: a PCIe card, or the machine is a SoC with one.

Not here: who may use it (``checks_device``), its memory (``regions``).
Source: bmlib_runtime.cpp of libsophon 0.5.1 for the nodes; bm_pcie_drv.c for the PCI numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from baichuan2_tpu.doctor.system_files import Machine

__all__ = ["DeviceKind", "Tpu", "find_tpu"]

DeviceKind = Literal["pcie", "soc", "none"]

_PCI_VENDOR, _PCI_DEVICE = "0x1f1c", "0x1686"


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
