"""A whole diagnosis: the findings in reading order, and whether the machine can do what is asked of it.

Not here: drawing it (``cli.doctor``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from baichuan2_tpu.doctor.finding import Finding
from baichuan2_tpu.doctor.host import Host
from baichuan2_tpu.doctor.judge_host import check_host
from baichuan2_tpu.doctor.judge_tpu import check_device
from baichuan2_tpu.doctor.judge_tpu_memory import check_device_memory
from baichuan2_tpu.doctor.need import Need, read_need
from baichuan2_tpu.doctor.system_files import Machine
from baichuan2_tpu.doctor.tpu import find_tpu
from baichuan2_tpu.errors import Baichuan2Error

__all__ = ["Report", "examine"]


@dataclass(frozen=True, slots=True)
class Report:
    """The findings about a machine. ``model`` is None where it was not examined for a model."""

    model: str | None
    findings: tuple[Finding, ...]
    need: Need | None = None
    """What the model needs; None without a model, or for one that cannot be read."""

    @property
    def is_ok(self) -> bool:
        """Tell whether nothing fails that the model, or else the machine's TPU, needs."""
        return all(finding.status != "fail" for finding in self.findings)

    def with_proofs(self, proofs: Sequence[Finding]) -> Report:
        """Return the report with the findings of proofs at its end."""
        return replace(self, findings=(*self.findings, *proofs))

    def to_json(self) -> dict[str, object]:
        """Return one JSON object; findings by the names of their fields."""
        return {
            "model": self.model,
            "is_ok": self.is_ok,
            "findings": [finding.to_json() for finding in self.findings],
        }


def examine(
    machine: Machine,
    host: Host,
    *,
    model: str | None = None,
    context: int | None = None,
    rows: int | None = None,
    device: int = 0,
) -> Report:
    """Read a machine and judge it, for a model where one is given. Nothing is loaded, and no fault raises."""
    findings: list[Finding] = []
    need: Need | None = None
    if model is not None:
        need, finding = _read_model(model, context, rows)
        findings.append(finding)
    tpu = find_tpu(machine, device)
    findings += check_host(machine, host, need)
    findings += check_device(machine, host, tpu, need)
    findings += check_device_memory(machine, tpu, need)
    return Report(model, tuple(findings), need)


def _read_model(model: str, context: int | None, rows: int | None) -> tuple[Need | None, Finding]:
    try:
        need = read_need(model, context, rows)
    except Baichuan2Error as error:
        fault, _, step = str(error).rpartition("; ")
        return None, Finding("model", "fail", fault or step, "", (step,) if fault else ())
    return need, Finding("model", "pass", need.title)
