"""Judge the TPU: who may use it, the vendor's versions, its chip, link, temperature and use.

What is wrong with a device is a failure only where it is needed. Not here: its memory (``checks_memory``),
computing on it (``proof``).
"""

from __future__ import annotations

from dataclasses import replace

from baichuan2_tpu.doctor.finding import Finding, Status
from baichuan2_tpu.doctor.host import Host
from baichuan2_tpu.doctor.need import Need
from baichuan2_tpu.doctor.system_files import MISSING, Machine
from baichuan2_tpu.doctor.tpu import (
    LEAST_LIBSOPHON,
    Tpu,
    Version,
    format_version,
    parse_version,
    read_board,
    read_chip,
    read_driver_version,
    read_libsophon_version,
    read_link,
    read_status,
    read_temperature,
    read_usage,
    sdk_name,
)
from baichuan2_tpu.engine.device.sail_library import OLDEST_SAIL

__all__ = ["check_device"]

_CHIP = "bm1684x"
_HOT_CELSIUS = 85
"""Well above what a box or card in a sensible place reaches under load; a bound of our own."""
_LEAST = f">= {format_version(LEAST_LIBSOPHON)} (SDK {sdk_name(LEAST_LIBSOPHON)})"
_INSTALL_STEP = {
    "pcie": "install sophon-driver and sophon-libsophon of one SDK, V24.04.01 or newer, then restart",
    "soc": "flash the box with SDK V24.04.01 or newer (sdcard.tgz of its sophon-img)",
}


def check_device(machine: Machine, host: Host, tpu: Tpu, need: Need | None) -> list[Finding]:
    """Return the findings of the TPU; of a machine without one, that it has none."""
    if tpu.kind == "none":
        return [_absent(need)]
    is_needed = need is None or need.runs_on == "tpu"
    bad: Status = "fail" if is_needed else "warn"
    findings = [
        _present(machine, tpu, need, bad),
        *(_node(machine, path, bad) for path in tpu.nodes),
        *_versions(machine, tpu, bad),
        _sail(host),
        _health(machine, tpu, bad),
    ]
    return [*findings, _link(machine, tpu)] if tpu.proc else findings


def _absent(need: Need | None) -> Finding:
    value = "none: no /dev/bm-sophon0, no /dev/bm-tpu0, no card 1f1c:1686 on the PCI bus"
    if need is None or need.runs_on == "cpu":
        return Finding("tpu", "info", value, "", ("checkpoints run on the cpu",))
    step = "run it on a machine with a BM1684X, or slowly with --engine simulator"
    return Finding("tpu", "fail", value, "a BM1684X for a compiled model", (step,))


def _present(machine: Machine, tpu: Tpu, need: Need | None, bad: Status) -> Finding:
    """Name the chip and compare it with what a model was compiled for."""
    chip, board = read_chip(machine, tpu), read_board(machine, tpu)
    place = f"PCIe card at {tpu.pci}" if tpu.pci else {"pcie": "PCIe card", "soc": "SoC"}[tpu.kind]
    told = f"{chip.value or f'chip not known ({chip.told})'}, {place}"
    value = ", ".join(part for part in (told, board, f"device {tpu.number} of {tpu.count}") if part)
    if chip.value is None:
        return Finding("tpu", "warn", value, _CHIP)
    wanted = need.chip if need and need.chip else _CHIP
    if chip.value != wanted:
        return Finding("tpu", bad, value, wanted, (f"use a {wanted}, or compile for this chip",))
    if need is not None and need.devices > 1:
        step = "compile with --devices 1"
        return Finding("tpu", "fail", value, f"the model is for {need.devices} devices", (step,))
    return Finding("tpu", "pass", value, wanted)


def _node(machine: Machine, path: str, bad: Status) -> Finding:
    seen = machine.node(path)
    if seen.value is None:
        step = "load the driver: sudo modprobe bmsophon (PCIe) or bmtpu (SoC); dmesg says why it would not"
        return Finding("node", bad, seen.told, "a device node", (step,))
    node = seen.value
    value = f"{path} {node.rights} {node.owner}:{node.group}"
    if node.is_usable:
        return Finding("node", "pass", value)
    # The vendor's driver asks for 0777; what takes that away is a udev rule, which may have a group instead.
    if node.group != "root" and node.rights[4:6] == "rw":
        step = ("$ " + f"sudo usermod -aG {node.group} $USER", "then log in again")
    else:
        step = ("$ " + f"sudo chmod 0666 {path}", "and a udev rule to keep it so")
    return Finding("node", bad, value, "read and write for this user", step)


def _versions(machine: Machine, tpu: Tpu, bad: Status) -> list[Finding]:
    """Judge the driver and libsophon, each and the two together; a step that both want is told once."""
    seen = {"driver": read_driver_version(machine, tpu.kind), "libsophon": read_libsophon_version(machine)}
    driver, library = (_version(name, one.value, one.told, bad) for name, one in seen.items())
    versions = [one.value for one in seen.values()]
    if library.status == "warn" and seen["libsophon"].problem == MISSING:
        library = replace(library, status=bad)  # without libbmlib nothing runs on a device
    if driver.status == library.status == "pass" and versions[0] != versions[1]:
        value = f"{library.value}, but the driver is {format_version(versions[0] or ())}"
        library = Finding("libsophon", "warn", value, "one version of both")
    install = (_INSTALL_STEP[tpu.kind],)
    if library.status != "pass":
        return [driver, replace(library, next_step=install)]
    return [driver if driver.status != bad else replace(driver, next_step=install), library]


def _version(name: str, version: Version | None, told: str, bad: Status) -> Finding:
    if version is None:
        return Finding(name, "warn", told, _LEAST)
    sdk = sdk_name(version)
    value = f"{format_version(version)} (SDK {sdk})" if sdk else format_version(version)
    return Finding(name, bad if version < LEAST_LIBSOPHON else "pass", value, _LEAST)


def _sail(host: Host) -> Finding:
    """Judge SAIL, which only ``--engine sail`` needs."""
    allowed = f">= {OLDEST_SAIL}"
    if not host.sail:
        return Finding("sail", "info", "not installed; only --engine sail needs it", allowed)
    version = parse_version(host.sail)
    if version is not None and version < (parse_version(OLDEST_SAIL) or ()):
        step = "build a newer one from https://github.com/sophgo/sophon-sail, or use --engine bmrt"
        return Finding("sail", "warn", f"SOPHON-SAIL {host.sail}", allowed, (step,))
    return Finding("sail", "pass" if version else "warn", f"SOPHON-SAIL {host.sail}", allowed)


def _health(machine: Machine, tpu: Tpu, bad: Status) -> Finding:
    """Put state, temperature and use on one line."""
    status = read_status(machine, tpu) if tpu.proc else None
    heat, usage = read_temperature(machine, tpu), read_usage(machine, tpu)
    parts = [status.value or status.told] if status else []
    parts.append(f"{heat.value} °C" if heat.value is not None else heat.told)
    parts.append(f"{usage.value} % in use" if usage.value is not None else usage.told)
    value = ", ".join(parts)
    if status and status.value == "Fault":
        step = "dmesg says more; reset the card with bm-smi --recovery, or restart the machine"
        return Finding("state", bad, value, "Active", (step,))
    if heat.value is not None and heat.value >= _HOT_CELSIUS:
        return Finding("state", "warn", value, f"< {_HOT_CELSIUS} °C", ("look after fan and air",))
    if usage.value:
        return Finding("state", "warn", value, "0 % in use", ("bm-smi shows who uses it",))
    is_known = None not in (heat.value, usage.value)
    return Finding("state", "pass" if is_known else "warn", value, f"< {_HOT_CELSIUS} °C")


def _link(machine: Machine, tpu: Tpu) -> Finding:
    link, best = read_link(machine, tpu)
    if link.value is None:
        return Finding("link", "warn", link.told)
    if best is None or link.value == best:
        return Finding("link", "pass", str(link.value), str(best or ""))
    is_less = link.value.generation * link.value.lanes < best.generation * best.lanes
    step = "loading is slower, tokens are not; another slot may give all lanes"
    return Finding("link", "warn" if is_less else "pass", str(link.value), str(best), (step,))
