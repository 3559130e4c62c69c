"""The processor, from /proc/cpuinfo: its name, its threads, and the instruction sets that matter here.

Not here: which kernels our engine picks (``engine.cpu`` asks the processor itself).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from baichuan2_tpu.doctor.system_files import Machine, Seen

__all__ = ["Processor", "parse_processor", "read_processor"]

_INSTRUCTIONS = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx_vnni", "asimd", "asimddp", "fphp")
"""In the kernel's spelling: what kernels for matrices are, or could be, written for."""
_IMPLEMENTERS = {"0x41": "Arm", "0x61": "Apple", "0x48": "HiSilicon", "0x51": "Qualcomm"}


@dataclass(frozen=True, slots=True)
class Processor:
    """Units: ``threads`` counts what the kernel calls processors."""

    model: str
    threads: int
    instructions: tuple[str, ...]


def read_processor(machine: Machine) -> Seen[Processor]:
    """Read /proc/cpuinfo."""
    return machine.parsed("/proc/cpuinfo", parse_processor)


def parse_processor(text: str) -> Processor | None:
    """Return what the text says, or None when it names no processor."""
    threads = len(re.findall(r"^processor\s*:", text, re.MULTILINE))
    if threads == 0:
        return None
    known = _field(text, "flags") or _field(text, "Features")
    flags = set(known.split())
    model = _field(text, "model name") or _IMPLEMENTERS.get(_field(text, "CPU implementer"), "unnamed")
    return Processor(model, threads, tuple(one for one in _INSTRUCTIONS if one in flags))


def _field(text: str, name: str) -> str:
    found = re.search(rf"^{name}[ \t]*:[ \t]*(.*)$", text, re.MULTILINE)
    return found[1].strip() if found else ""
