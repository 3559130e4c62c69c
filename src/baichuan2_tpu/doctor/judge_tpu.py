"""Judge the TPU: its chip, who may use it, versions of the vendor's software, temperature, load and link.

A fault of a device fails only where the device is needed. Not here: its memory (``judge_tpu_memory``),
computing on it (``proofs.prove_engines``).
"""

from __future__ import annotations

from dataclasses import replace

from baichuan2_tpu.doctor.finding import Finding, Status
from baichuan2_tpu.doctor.host import Host
from baichuan2_tpu.doctor.need import Need
from baichuan2_tpu.doctor.system_files import MISSING, Machine, Seen
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
"""Our own bound, well above what a box or a card reaches under load where air can flow."""
_ALLOWED_LIBSOPHON = f">= {format_version(LEAST_LIBSOPHON)} (SDK {sdk_name(LEAST_LIBSOPHON)})"
_INSTALL_STEP = {
    "pcie": "install sophon-driver and sophon-libsophon of one SDK, V24.04.01 or newer, then restart",
    "soc": "flash the box with SDK V24.04.01 or newer (sdcard.tgz of its sophon-img)",
}
_MODULE = {"pcie": "bmsophon", "soc": "bmtpu"}


def check_device(machine: Machine, host: Host, tpu: Tpu, need: Need | None) -> list[Finding]:
    """Return the findings of the TPU, or the one finding that there is none."""
    if tpu.kind == "none":
        return [_judge_absence(need)]
    is_needed = need is None or need.runs_on == "tpu"
    bad: Status = "fail" if is_needed else "warn"
    findings = [
        _judge_chip(machine, tpu, need, bad),
        *(_judge_node(machine, tpu, path, bad) for path in tpu.nodes),
        *_judge_versions(machine, tpu, bad),
        _judge_sail(host),
        _judge_state(machine, tpu, bad),
    ]
    return [*findings, _judge_link(machine, tpu)] if tpu.proc else findings


def _judge_absence(need: Need | None) -> Finding:
    value = "not found: no /dev/bm-sophon0, no /dev/bm-tpu0, no card 1f1c:1686 on the PCI bus"
    if need is None or need.runs_on == "cpu":
        step = "checkpoints run on the CPU; compiled bundles need a BM1684X"
        return Finding("tpu", "info", value, "", (step,))
    step = "run it on a machine with a BM1684X, or very slowly with --engine simulator"
    return Finding("tpu", "fail", value, "a BM1684X for a compiled model", (step,))


def _judge_chip(machine: Machine, tpu: Tpu, need: Need | None, bad: Status) -> Finding:
    """Compare the chip with the one that a model was compiled for."""
    chip, board = read_chip(machine, tpu), read_board(machine, tpu)
    place = f"PCIe card at {tpu.pci}" if tpu.pci else {"pcie": "PCIe card", "soc": "SoC"}[tpu.kind]
    name = chip.value or f"unknown chip ({chip.explanation})"
    value = ", ".join(part for part in (name, place, board, f"device {tpu.number} of {tpu.count}") if part)
    if chip.value is None:
        return Finding("tpu", "warn", value, _CHIP)
    expected = need.chip if need and need.chip else _CHIP
    if chip.value != expected:
        step = f"compile the model for {_CHIP}" if chip.value == _CHIP else f"use a machine with a {expected}"
        return Finding("tpu", bad, value, expected, (step,))
    if need is not None and need.devices > 1:
        step = "compile it again with --devices 1"
        return Finding("tpu", "fail", value, f"the model is for {need.devices} devices", (step,))
    return Finding("tpu", "pass", value, expected)


def _judge_node(machine: Machine, tpu: Tpu, path: str, bad: Status) -> Finding:
    seen = machine.read_node(path)
    if seen.value is None:
        step = ("$ " + f"sudo modprobe {_MODULE[tpu.kind]}", "if the driver cannot be loaded, dmesg says why")
        return Finding("node", bad, seen.explanation, "a device node", step)
    node = seen.value
    value = f"{path} {node.rights} {node.owner}:{node.group}"
    if node.is_usable:
        return Finding("node", "pass", value)
    # The vendor's driver makes nodes with mode 0777; a udev rule may have given them to a group instead.
    if node.group != "root" and node.rights[4:6] == "rw":
        step = ("$ " + f"sudo usermod -aG {node.group} $USER", "then log in again")
    else:
        step = ("$ " + f"sudo chmod 0666 {path}", "to keep it after a restart, add a udev rule")
    return Finding("node", bad, value, "read and write for this user", step)


def _judge_versions(machine: Machine, tpu: Tpu, bad: Status) -> list[Finding]:
    """Judge the driver and libsophon, alone and together; a step for both is given once."""
    seen = {"driver": read_driver_version(machine, tpu.kind), "libsophon": read_libsophon_version(machine)}
    driver, library = (_judge_version(name, version, bad) for name, version in seen.items())
    versions = [version.value for version in seen.values()]
    if library.status == "warn" and seen["libsophon"].problem == MISSING:
        library = replace(library, status=bad)  # without libbmlib nothing runs on a device
    if driver.status == library.status == "pass" and versions[0] != versions[1]:
        value = f"{library.value}, but the driver is {format_version(versions[0] or ())}"
        library = Finding("libsophon", "warn", value, "the same version as the driver")
    install = (_INSTALL_STEP[tpu.kind],)
    if library.status != "pass":
        return [driver, replace(library, next_step=install)]
    return [driver if driver.status != bad else replace(driver, next_step=install), library]


def _judge_version(name: str, seen: Seen[Version], bad: Status) -> Finding:
    version = seen.value
    if version is None:
        return Finding(name, "warn", seen.explanation, _ALLOWED_LIBSOPHON)
    sdk = sdk_name(version)
    value = f"{format_version(version)} (SDK {sdk})" if sdk else format_version(version)
    return Finding(name, bad if version < LEAST_LIBSOPHON else "pass", value, _ALLOWED_LIBSOPHON)


def _judge_sail(host: Host) -> Finding:
    """Judge the version of SAIL, which only ``--engine sail`` needs."""
    allowed = f">= {OLDEST_SAIL}"
    if not host.sail:
        return Finding("sail", "info", "not installed; only --engine sail needs it", allowed)
    version = parse_version(host.sail)
    if version is not None and version < (parse_version(OLDEST_SAIL) or ()):
        step = "build a newer version from https://github.com/sophgo/sophon-sail, or use --engine bmrt"
        return Finding("sail", "warn", f"SOPHON-SAIL {host.sail}", allowed, (step,))
    return Finding("sail", "pass" if version else "warn", f"SOPHON-SAIL {host.sail}", allowed)


def _judge_state(machine: Machine, tpu: Tpu, bad: Status) -> Finding:
    """Judge state, temperature and load in one finding."""
    status = read_status(machine, tpu) if tpu.proc else None
    heat, usage = read_temperature(machine, tpu), read_usage(machine, tpu)
    parts = [status.value or status.explanation] if status else []
    parts.append(f"{heat.value} °C" if heat.value is not None else heat.explanation)
    parts.append(f"{usage.value} % in use" if usage.value is not None else usage.explanation)
    value = ", ".join(parts)
    if status and status.value == "Fault":
        reset = f"$ bm-smi --dev={tpu.number:#x} --recovery"
        step = (reset, "if that does not help, switch the machine off and on; dmesg says more")
        return Finding("state", bad, value, "Active", step)
    if heat.value is not None and heat.value >= _HOT_CELSIUS:
        return Finding("state", "warn", value, f"< {_HOT_CELSIUS} °C", ("check the fan and the air flow",))
    if usage.value:
        return Finding("state", "warn", value, "0 % in use", ("bm-smi lists the programs that use it",))
    is_known = None not in (heat.value, usage.value)
    return Finding("state", "pass" if is_known else "warn", value, f"< {_HOT_CELSIUS} °C")


def _judge_link(machine: Machine, tpu: Tpu) -> Finding:
    link, best = read_link(machine, tpu)
    if link.value is None:
        return Finding("link", "warn", link.explanation)
    if best is None or link.value == best:
        return Finding("link", "pass", str(link.value), str(best or ""))
    if link.value.generation * link.value.lanes >= best.generation * best.lanes:
        return Finding("link", "pass", str(link.value), str(best))
    step = "models load more slowly, but answer as fast; another slot may have more lanes"
    return Finding("link", "warn", str(link.value), str(best), (step,))
