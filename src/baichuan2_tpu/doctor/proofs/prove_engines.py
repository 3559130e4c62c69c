"""Prove a machine by computing: something with a known answer on every engine that is there.

The CPU runs a tiny random model and is compared with numpy. A TPU copies bytes in its memory and must return
them unchanged. A bundle's first layer is compared with numpy where its checkpoint is given. Whatever drives a
device runs in a child process, which a fault may end. Not here: judging versions and memory (``judge_*``).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.doctor.finding import Finding, Status
from baichuan2_tpu.doctor.host import Host
from baichuan2_tpu.doctor.need import Need
from baichuan2_tpu.doctor.proofs.child_process import Outcome, run_in_child
from baichuan2_tpu.doctor.proofs.prove_toolchain import check_toolchain
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
_MOST_ERROR = {4: 0.05, 8: 0.03}
"""Relative; measured: 0.0094 and 0.0060. Most activations have 8 bits."""


@dataclass(frozen=True, slots=True)
class ProofSettings:
    """What to prove: a bundle or bmodel on the TPU, with the checkpoint it came from, and the simulator."""

    compiled: Path | None = None
    checkpoint: Path | None = None
    device: int = 0
    has_simulator: bool = False
    is_tpu_needed: bool = True
    """False for a model that runs on the CPU, which no fault of a TPU concerns."""

    @classmethod
    def of(cls, need: Need | None, *, checkpoint: Path | None, device: int, simulator: bool) -> ProofSettings:
        """Return the settings for a model's need; without a model, the TPU is needed."""
        compiled = need.compiled if need else None
        is_tpu_needed = need is None or need.runs_on == "tpu"
        return cls(compiled, checkpoint, device, simulator, is_tpu_needed)


def prove(host: Host, tpu: Tpu, settings: ProofSettings) -> list[Finding]:
    """Compute on every engine that is there. A wrong answer is a finding, never raised."""
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
    differences = ", ".join(f"{error:.1e} at {bits} bits" for bits, error in errors.items())
    allowed = ", ".join(f"{_MOST_ERROR[bits]:g} at {bits}" for bits in _BITS)
    value, allowed = f"a tiny model differs from numpy by {differences}", f"<= {allowed}"
    if all(errors[bits] <= _MOST_ERROR[bits] for bits in _BITS):
        return Finding("computes: cpu", "pass", value, allowed)
    step = "the processor or the installation is faulty; reinstall, then report baichuan2 doctor --json"
    return Finding("computes: cpu", "fail", value, allowed, (step,))


def _cpu_error(bits: int) -> float:
    weights = RandomWeights(shape_config("tiny", 4 if bits == 4 else 8))
    with CpuEngine(weights) as engine, engine.open_sequence() as sequence:
        (logits,) = engine.forward([Chunk(sequence, [_TOKEN])])
        return relative_error(logits, first_token_logits(weights, _TOKEN))


def _prove_memory(settings: ProofSettings) -> Finding:
    """Send bytes there and back, the only thing a TPU can do without a compiled model."""
    outcome = run_in_child("memory", str(settings.device))
    return _judge("computes: tpu", outcome, "fail" if settings.is_tpu_needed else "warn")


def _prove_net(engine: str, compiled: Path, settings: ProofSettings) -> Finding:
    """Run a compiled model; without its checkpoint, only check that the answer is repeatable."""
    words = [engine, str(compiled), str(settings.device)]
    checkpoint = [str(settings.checkpoint)] if settings.checkpoint else []
    return _judge(f"computes: {engine}", run_in_child("net", *words, *checkpoint), "fail")


def _prove_simulator() -> Finding:
    name = "computes: simulator"
    try:
        check = check_toolchain(find_toolchain())
    except (BackendError, CompileError) as error:
        return Finding(name, "fail", str(error))
    times = f"compiled in {check.compile_s:.1f} s and simulated in {check.simulate_s:.1f} s"
    return Finding(name, "pass", f"one layer, {times}, differs from numpy by {check.error:.1e}", "<= 1e-2")


def _judge(name: str, outcome: Outcome, bad: Status) -> Finding:
    if not outcome.problem:
        return Finding(name, "pass", outcome.result)
    step = "first fix what is wrong above; dmesg and bm-smi say more"
    return Finding(name, bad, outcome.problem, "", (step,))
