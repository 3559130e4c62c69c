"""Judge the machine itself: system, Python, processor, memory, disk, compiler.

Not here: TPUs (``judge_tpu``).
"""

from __future__ import annotations

import re

from baichuan2_tpu.doctor.finding import Finding
from baichuan2_tpu.doctor.host import Host, read_host_memory, read_limit, read_processor
from baichuan2_tpu.doctor.need import Need
from baichuan2_tpu.doctor.system_files import Machine

__all__ = ["check_host", "gigabytes"]

_FULL_SPEED = {
    "avx512_vnni": "AVX2, FMA and F16C",
    "avx_vnni": "AVX2, FMA and F16C",
    "avx2": "AVX2, FMA and F16C",
    "neon_i8mm": "NEON",
    "neon_dotprod": "NEON",
    "neon": "NEON",
}
"""Kernels that are as fast as their processor allows, and the least that such kernels need."""
_FETCH_BYTES = 20_000_000_000
"""The official 7B takes 15 GB, and its 4-bit form another 4.8 GB."""


def check_host(machine: Machine, host: Host, need: Need | None) -> list[Finding]:
    """Return the findings of the machine, for a model where there is one."""
    return [
        _judge_system(machine, host),
        Finding("python", "pass", f"{host.python}, baichuan2-tpu {host.version}", ">= 3.10"),
        _judge_processor(machine, host, need),
        _judge_memory(machine, need),
        _judge_disk(host),
        _judge_toolchain(host),
    ]


def gigabytes(count: int) -> str:
    """Write a number of bytes in GB of 10^9."""
    return f"{count / 1e9:.2f} GB"


def _judge_system(machine: Machine, host: Host) -> Finding:
    release = machine.parse("/etc/os-release", _pretty_name)
    kernel = machine.parse("/proc/sys/kernel/osrelease", str.strip)
    names = release.value or release.explanation, kernel.value or kernel.explanation
    value = f"{names[0]}, Linux {names[1]}, {host.architecture}"
    is_known = release.value is not None and kernel.value is not None
    return Finding("system", "pass" if is_known else "warn", value)


def _judge_processor(machine: Machine, host: Host, need: Need | None) -> Finding:
    seen = read_processor(machine)
    kernels = f"kernels: {host.kernels[0]}"
    if seen.value is None:
        return Finding("processor", "warn", f"{seen.explanation}; {kernels}")
    sets = " ".join(seen.value.instructions) or "no known vector instructions"
    value = f"{seen.value.model}, {seen.value.threads} threads ({sets}); {kernels}"
    is_slow_here = need is None or need.runs_on == "cpu"
    if "i8mm" in seen.value.instructions and host.kernels[0] != "neon_i8mm":
        step = "install the package again with g++ 10 or newer, which knows i8mm"
        status = "warn" if is_slow_here else "info"
        return Finding("processor", status, value, "kernels: neon_i8mm for full speed", (step,))
    if host.kernels[0] in _FULL_SPEED:
        return Finding("processor", "pass", value, _FULL_SPEED[host.kernels[0]])
    step = "models will be slow on this CPU; run a compiled bundle on a TPU, or use another machine"
    return Finding(
        "processor",
        "warn" if is_slow_here else "info",
        value,
        "x86-64 with AVX2, FMA and F16C, or Arm with NEON, for full speed",
        (step,) if is_slow_here else (),
    )


def _judge_memory(machine: Machine, need: Need | None) -> Finding:
    seen, limit = read_host_memory(machine), read_limit(machine)
    if seen.value is None:
        return Finding("memory", "warn", seen.explanation)
    most = min(seen.value.total, limit or seen.value.total)
    value = f"{gigabytes(seen.value.total)}, {gigabytes(seen.value.available)} available"
    if most < seen.value.total:
        value += f"; this container is limited to {gigabytes(most)}"
    if need is None or need.host_bytes == 0:
        return Finding("memory", "pass", value)
    if need.runs_on == "tpu":
        return _judge_mapped_memory(value, seen.value.available, need.host_bytes)
    allowed = f">= {gigabytes(need.host_bytes)} for this model at context {need.context}"
    if need.host_bytes > most:
        step = "use fewer bits, a shorter --context or a machine with more memory"
        return Finding("memory", "fail", value, allowed, (step,))
    if need.host_bytes > seen.value.available:
        return Finding("memory", "warn", value, allowed, ("end other programs before you load the model",))
    return Finding("memory", "pass", value, allowed)


def _judge_mapped_memory(value: str, available: int, embedding_bytes: int) -> Finding:
    """Judge whether the embedding, which is read from its file, stays in memory once it is read."""
    if embedding_bytes <= available:
        return Finding("memory", "pass", value)
    allowed = f">= {gigabytes(embedding_bytes)} available for the embedding"
    step = "it runs, but reads the disk all the time: end other programs, or compile with --embedding device"
    return Finding("memory", "warn", value, allowed, (step,))


def _judge_disk(host: Host) -> Finding:
    value = f"{gigabytes(host.cache_free_bytes)} free for {host.cache}"
    allowed = f">= {gigabytes(_FETCH_BYTES)} to fetch and quantise a 7B model"
    if host.cache_free_bytes >= _FETCH_BYTES:
        return Finding("disk", "pass", value, allowed)
    step = "delete files, or set XDG_CACHE_HOME to a folder on a larger disk"
    return Finding("disk", "warn", value, allowed, (step,))


def _judge_toolchain(host: Host) -> Finding:
    if host.toolchain:
        return Finding("toolchain", "pass", f"TPU-MLIR {host.toolchain}, with its simulator")
    value = "only the simulator is installed" if host.simulator else "not installed"
    step = "to compile bundles on this machine: baichuan2 toolchain install"
    return Finding("toolchain", "info", value, "", (step,) if host.architecture == "x86_64" else ())


def _pretty_name(text: str) -> str | None:
    match = re.search(r'^PRETTY_NAME="?([^"\n]{1,60})', text, re.MULTILINE)
    return match[1] if match else None
