"""What a TPU is and how it is at the moment: chip, board, link, temperature, use.

Not here: its memory (``regions``), versions (``versions``).
Source: bm_debug.c and bm_attr.c of libsophon 0.5.1; get_info.sh of sophgo/sophon-tools for a SoC.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from baichuan2_tpu.doctor.system_files import Machine, Seen
from baichuan2_tpu.doctor.tpu import Tpu

__all__ = [
    "Link",
    "parse_celsius",
    "parse_chip",
    "parse_link",
    "parse_thousandths",
    "parse_usage",
    "read_board",
    "read_chip",
    "read_link",
    "read_status",
    "read_temperature",
    "read_usage",
]

_SOC_TEMPERATURE = "/sys/class/thermal/thermal_zone0/temp"
_SOC_BOARD = "/proc/device-tree/info/file-name"
_CHIP = re.compile(r"(?:0x|bm)(1684x|1684|1686|1688)(?![0-9a-z])", re.IGNORECASE)
_SENSIBLE = range(-55, 151)
"""Degrees that a chip can have."""


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
