"""Judge the machine itself: system, Python, processor, memory, disk, compiler.

Not here: TPUs (``checks_device``).
"""

from __future__ import annotations

import re

from baichuan2_tpu.doctor.finding import Finding
from baichuan2_tpu.doctor.host import Host, read_host_memory, read_limit, read_processor
from baichuan2_tpu.doctor.need import Need
from baichuan2_tpu.doctor.system_files import Machine

__all__ = ["check_host", "gigabytes"]

_FULL_SPEED = "avx2"
_FETCH_BYTES = 20_000_000_000
"""The official 7B has 15 GB; quantised to 4 bits it takes 4.8 GB beside it."""


def check_host(machine: Machine, host: Host, need: Need | None) -> list[Finding]:
    """Return the findings of the machine, for a model where there is one."""
    return [
        _system(machine, host),
        Finding("python", "pass", f"{host.python}, baichuan2-tpu {host.version}", ">= 3.10"),
        _processor(machine, host, need),
        _memory(machine, need),
        _disk(host),
        _toolchain(host),
    ]


def gigabytes(count: int) -> str:
    """Write bytes as the kernel's units would: 1 GB has 10^9."""
    return f"{count / 1e9:.2f} GB"


def _system(machine: Machine, host: Host) -> Finding:
    release = machine.parsed("/etc/os-release", _pretty_name)
    kernel = machine.parsed("/proc/sys/kernel/osrelease", str.strip)
    value = f"{release.value or release.told}, Linux {kernel.value or kernel.told}, {host.architecture}"
    is_known = release.value is not None and kernel.value is not None
    return Finding("system", "pass" if is_known else "warn", value)


def _processor(machine: Machine, host: Host, need: Need | None) -> Finding:
    seen = read_processor(machine)
    kernels = f"kernels: {host.kernels[0]}"
    if seen.value is None:
        return Finding("processor", "warn", f"{seen.told}; {kernels}")
    sets = " ".join(seen.value.instructions) or "none of those we look for"
    value = f"{seen.value.model}, {seen.value.threads} threads ({sets}); {kernels}"
    if host.kernels[0] == _FULL_SPEED:
        return Finding("processor", "pass", value, "AVX2, FMA and F16C")
    is_slow_here = need is None or need.runs_on == "cpu"
    step = ("a model on the cpu will be slow; run a compiled bundle on a TPU, or another machine",)
    return Finding(
        "processor",
        "warn" if is_slow_here else "info",
        value,
        "AVX2, FMA and F16C for full speed",
        step if is_slow_here else (),
    )


def _memory(machine: Machine, need: Need | None) -> Finding:
    seen, limit = read_host_memory(machine), read_limit(machine)
    if seen.value is None:
        return Finding("memory", "warn", seen.told)
    most = min(seen.value.total, limit or seen.value.total)
    value = f"{gigabytes(seen.value.total)}, {gigabytes(seen.value.available)} available"
    if most < seen.value.total:
        value += f"; this container may take {gigabytes(most)}"
    if need is None or need.host_bytes == 0:
        return Finding("memory", "pass", value)
    if need.runs_on == "tpu":
        return _mapped(value, seen.value.available, need.host_bytes)
    allowed = f">= {gigabytes(need.host_bytes)} for this model at context {need.context}"
    if need.host_bytes > most:
        step = "use fewer bits, a shorter --context or a machine with more memory"
        return Finding("memory", "fail", value, allowed, (step,))
    if need.host_bytes > seen.value.available:
        return Finding("memory", "warn", value, allowed, ("end other programs before it is loaded",))
    return Finding("memory", "pass", value, allowed)


def _mapped(value: str, available: int, embedding_bytes: int) -> Finding:
    """Judge whether the rows of the embedding stay in memory once they are read."""
    if embedding_bytes <= available:
        return Finding("memory", "pass", value)
    allowed = f">= {gigabytes(embedding_bytes)} available for the embedding"
    step = "it runs, but reads rows from disk again: end other programs, or compile with --embedding device"
    return Finding("memory", "warn", value, allowed, (step,))


def _disk(host: Host) -> Finding:
    value = f"{gigabytes(host.cache_free_bytes)} free for {host.cache}"
    allowed = f">= {gigabytes(_FETCH_BYTES)} to fetch and quantise a 7B"
    if host.cache_free_bytes >= _FETCH_BYTES:
        return Finding("disk", "pass", value, allowed)
    step = "free some, or set XDG_CACHE_HOME to a larger disk"
    return Finding("disk", "warn", value, allowed, (step,))


def _toolchain(host: Host) -> Finding:
    if host.toolchain:
        return Finding("toolchain", "pass", f"TPU-MLIR {host.toolchain}, with its simulator")
    value = "the simulator alone" if host.simulator else "not installed"
    step = "to compile bundles here (x86_64): baichuan2 toolchain install"
    return Finding("toolchain", "info", value, "", (step,) if host.architecture == "x86_64" else ())


def _pretty_name(text: str) -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]{1,60})', text, re.MULTILINE)
    return found[1] if found else None
