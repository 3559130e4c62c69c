"""Prove a machine by computing: something with a known answer on every engine that is there.

The cpu runs a tiny random model beside numpy. A TPU's memory gives back what it was given, through the copies
that the device itself makes; a bundle's net computes, beside numpy where its checkpoint is at hand. What
drives a device runs in a process of its own (``apart``): vendor libraries end theirs on a fault.
Not here: judging versions and memory (``checks_*``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.doctor.child_process import Outcome, run_apart
from baichuan2_tpu.doctor.finding import Finding, Status
from baichuan2_tpu.doctor.host import Host
from baichuan2_tpu.doctor.need import Need
from baichuan2_tpu.doctor.prove_toolchain import check_toolchain
from baichuan2_tpu.doctor.tpu import Tpu
from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.errors import BackendError, CompileError
from baichuan2_tpu.reference.layer import first_token_logits
from baichuan2_tpu.reference.operations import relative_error
from baichuan2_tpu.shapes import shape_config
from baichuan2_tpu.toolchain import find_toolchain

__all__ = ["ProofSettings", "prove"]

_TOKEN = 7
_BITS = 4, 8
_MOST_ERROR = {4: 0.05, 8: 0.005}
"""Relative; measured: 0.0094 and 0.0002. Activations have 8 bits beside 4-bit weights, else 16."""


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """What to prove: a bundle or bmodel on the TPU, beside the checkpoint it came from, and the simulator."""

    compiled: Path | None = None
    checkpoint: Path | None = None
    device: int = 0
    has_simulator: bool = False
    is_tpu_needed: bool = True
    """False for a model that runs on the cpu: what is wrong with a TPU does not concern it."""

    @classmethod
    def of(cls, need: Need | None, *, checkpoint: Path | None, device: int, simulator: bool) -> ProofSettings:
        """Take what a model needs; without one, the TPU is what the machine is for."""
        compiled = need.compiled if need else None
        is_tpu_needed = need is None or need.runs_on == "tpu"
        return cls(compiled, checkpoint, device, simulator, is_tpu_needed)


def prove(host: Host, tpu: Tpu, settings: ProofSettings) -> list[Finding]:
    """Compute on every engine that is there; nothing raises, a wrong answer is a finding."""
    findings = [prove_cpu()]
    if tpu.kind != "none":
        findings.append(_prove_memory(settings))
        engines = ("bmrt", "sail") if host.sail else ("bmrt",)
        if settings.compiled is not None:
            findings += [_prove_net(engine, settings.compiled, settings) for engine in engines]
    if settings.has_simulator:
        findings.append(_prove_simulator())
    return findings


def prove_cpu() -> Finding:
    """Run one token through tiny random models of 4 and of 8 bits, and compare all logits with numpy."""
    errors = {bits: _cpu_error(bits) for bits in _BITS}
    told = ", ".join(f"{error:.1e} at {bits} bits" for bits, error in errors.items())
    allowed = ", ".join(f"{_MOST_ERROR[bits]:g} at {bits}" for bits in _BITS)
    value, allowed = f"logits of a tiny model beside numpy: off by {told}", f"<= {allowed}"
    if all(errors[bits] <= _MOST_ERROR[bits] for bits in _BITS):
        return Finding("computes: cpu", "pass", value, allowed)
    step = (
        "the processor or this installation is faulty; reinstall, and report it with baichuan2 doctor --json"
    )
    return Finding("computes: cpu", "fail", value, allowed, (step,))


def _cpu_error(bits: int) -> float:
    weights = RandomWeights(shape_config("tiny", 4 if bits == 4 else 8))
    with CpuEngine(weights) as engine, engine.open_sequence() as sequence:
        (logits,) = engine.forward([Chunk(sequence, [_TOKEN])])
        return relative_error(logits, first_token_logits(weights, _TOKEN))


def _prove_memory(settings: ProofSettings) -> Finding:
    """Send bytes there and back: without a compiled model that is what a TPU can be asked to do."""
    outcome = run_apart("memory", str(settings.device))
    return _judged("computes: tpu", outcome, "fail" if settings.is_tpu_needed else "warn")


def _prove_net(engine: str, compiled: Path, settings: ProofSettings) -> Finding:
    """Compute on the nets that are there; without a checkpoint nothing but sense can be checked."""
    words = [engine, str(compiled), str(settings.device)]
    checkpoint = [str(settings.checkpoint)] if settings.checkpoint else []
    return _judged(f"computes: {engine}", run_apart("net", *words, *checkpoint), "fail")


def _prove_simulator() -> Finding:
    name = "computes: simulator"
    try:
        check = check_toolchain(find_toolchain())
    except (BackendError, CompileError) as error:
        return Finding(name, "fail", str(error))
    took = f"compiled in {check.compile_s:.1f} s, simulated in {check.simulate_s:.1f} s"
    return Finding(name, "pass", f"a layer, {took}, is off by {check.error:.1e} beside numpy", "<= 1e-2")


def _judged(name: str, outcome: Outcome, bad: Status) -> Finding:
    if not outcome.problem:
        return Finding(name, "pass", outcome.told)
    step = "dmesg and bm-smi say more; what stands above it goes first"
    return Finding(name, bad, outcome.problem, "", (step,))
