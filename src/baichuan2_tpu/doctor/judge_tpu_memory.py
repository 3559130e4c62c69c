"""Judge the memory of a TPU against what a model needs, and tell how to change a SoC's regions.

The commands are shown, never run. Not here: what a model needs (``need``), the limits (``tpu_memory``).
Source: README of sample/Baichuan2 in sophgo/sophon-demo; memory_edit.sh of sophgo/sophon-tools.
"""

from __future__ import annotations

from baichuan2_tpu.doctor.finding import Finding, Status
from baichuan2_tpu.doctor.host import read_host_memory
from baichuan2_tpu.doctor.judge_host import gigabytes
from baichuan2_tpu.doctor.need import VENDOR_MINIMUM_BYTES, Need
from baichuan2_tpu.doctor.system_files import NEEDS_ROOT, Machine
from baichuan2_tpu.doctor.tpu import Tpu
from baichuan2_tpu.doctor.tpu_memory import (
    MIB,
    REGIONS,
    Layout,
    Regions,
    plan_layout,
    read_limits,
    read_regions,
)

__all__ = ["check_device_memory"]

_BORDER_BYTES = 512 * MIB
"""What may be lost at the regions' ends: a net's weights lie in one region, the largest have 0.55 GB."""
_SYSTEM_BYTES = 4096 * MIB
"""What the vendor wants the system to have while Python packages are installed."""
_KIT = "memory_edit_v2.10"
_KIT_ADDRESS = f"https://github.com/sophgo/sophon-tools/releases/download/v24.09.21/{_KIT}.tar.xz"


def check_device_memory(machine: Machine, tpu: Tpu, need: Need | None) -> list[Finding]:
    """Return what the regions have, and whether a model fits; nothing for a machine without a TPU."""
    if tpu.kind == "none":
        return []
    regions = read_regions(machine, tpu)
    if not regions.regions:
        return [_unread(tpu, regions)]
    findings = [_regions(regions)]
    if need is not None and need.device_bytes is not None:
        findings.append(_fit(machine, tpu, regions, need, need.device_bytes))
    return findings


def _unread(tpu: Tpu, regions: Regions) -> Finding:
    seen = regions.problems[0]
    if any(problem.endswith(NEEDS_ROOT) for problem in regions.problems):
        return Finding("tpu memory", "warn", seen, "", ("$ sudo $(which baichuan2) doctor",))
    step = "mount debugfs as root: mount -t debugfs none /sys/kernel/debug" if tpu.kind == "soc" else ""
    return Finding("tpu memory", "warn", seen, "", (step,) if step else ())


def _regions(regions: Regions) -> Finding:
    parts = " + ".join(f"{region.name} {region.total // MIB}" for region in regions.regions)
    value = f"{parts} = {regions.total // MIB} MiB"
    if regions.ddr_gib is not None:
        value += f" of {regions.ddr_gib} GiB"
    if any(region.used is not None for region in regions.regions):
        value += f", {regions.free // MIB} MiB free"
    if regions.problems:
        return Finding("tpu memory", "warn", f"{value}; {regions.problems[0]}")
    return Finding("tpu memory", "pass", value)


def _fit(machine: Machine, tpu: Tpu, regions: Regions, need: Need, device_bytes: int) -> Finding:
    """Compare what is free with what a model needs, and with what the vendor asks for."""
    takes = "compiled, this model would need about" if need.is_estimate else "this model needs"
    value = f"{takes} {_mib(device_bytes)} MiB at context {need.context}"
    if need.rows > need.context:
        value += f" with {need.rows} rows for all conversations"
    if need.is_baichuan2_7b and need.bits in VENDOR_MINIMUM_BYTES:
        vendor = VENDOR_MINIMUM_BYTES[need.bits] // MIB
        value += f" (the vendor asks for {vendor} at {need.bits} bits)"
    allowed = f"<= {regions.free // MIB} MiB free"
    short = regions.free - device_bytes
    if short >= _BORDER_BYTES or (short >= 0 and len(regions.regions) == 1):
        return Finding("model fits", "pass", value, allowed)
    status: Status = "warn" if short >= 0 or need.is_estimate else "fail"
    return Finding("model fits", status, value, allowed, _more_memory(machine, tpu, regions, device_bytes))


def _more_memory(machine: Machine, tpu: Tpu, regions: Regions, device_bytes: int) -> tuple[str, ...]:
    """Tell what to do about too little memory."""
    # What others hold is theirs again after a restart, so a new layout makes room beside it.
    used = regions.total - regions.free
    smaller = "compile with fewer bits, fewer --rows or a shorter --context"
    if used >= _BORDER_BYTES and regions.total - device_bytes >= _BORDER_BYTES:
        return (f"end the programs that hold {_mib(used)} MiB of it: bm-smi lists them",)
    sizes = {region.name: region.total // MIB for region in regions.regions}
    if tpu.kind != "soc" or set(sizes) != set(REGIONS):
        return (smaller,)
    now, limits = Layout(**sizes), read_limits(machine)
    planned = plan_layout(now, limits, device_bytes + used + _BORDER_BYTES)
    if planned is None:
        most = limits.largest
        return (f"this board gives at most {most.total} MiB ({_format_layout(most)}); {smaller}",)
    condition = (
        "" if limits.is_read else ", if memory_edit.sh -p allows them: the device tree is not as known"
    )
    return (
        f"divide the memory again{condition}:",
        *_commands(planned),
        *_warn_about_system_memory(machine, now, planned),
    )


def _commands(planned: Layout) -> tuple[str, ...]:
    """Return the vendor's way from the kit to the restart."""
    return (
        "$ mkdir -p /data/memedit && cd /data/memedit",
        f"$ wget {_KIT_ADDRESS}",
        f"$ tar xf {_KIT}.tar.xz && cd memory_edit && ./memory_edit.sh -p",
        f"$ ./memory_edit.sh -c {_format_layout(planned)}",
        "$ sudo cp /data/memedit/memory_edit/emmcboot.itb /boot/emmcboot.itb && sync",
        "$ sudo reboot",
    )


def _warn_about_system_memory(machine: Machine, now: Layout, planned: Layout) -> tuple[str, ...]:
    """Tell what the system keeps, where that is less than the vendor wants for installing."""
    seen = read_host_memory(machine).value
    if seen is None:
        return ()
    left = seen.total - (planned.total - now.total) * MIB
    if left >= _SYSTEM_BYTES:
        return ()
    return (f"it leaves the system {gigabytes(left)}: install Python packages before",)


def _format_layout(layout: Layout) -> str:
    return f"-npu {layout.npu} -vpu {layout.vpu} -vpp {layout.vpp}"


def _mib(count: int) -> int:
    return -(-count // MIB)
