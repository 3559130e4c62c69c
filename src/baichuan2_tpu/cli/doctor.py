"""``baichuan2 doctor``: what this machine is, whether it can run a model, and the next step where it cannot.

Not here: looking and judging (``baichuan2_tpu.doctor``).
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.terminal import printable, write_result

if TYPE_CHECKING:
    from baichuan2_tpu.doctor import Finding, Report

__all__ = ["doctor", "draw"]

_WIDTH = 100
_STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red", "info": "cyan"}
_COMMAND = "$ "
"""What a line begins with that is a command."""


def doctor(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Also check the machine for this model, which is neither fetched nor loaded.",
        ),
    ] = None,
    *,
    context: options.Context = None,
    rows: Annotated[
        int | None,
        typer.Option(
            "--rows",
            min=1,
            help="For a checkpoint to compile: tokens that all conversations together can hold on the TPU.",
            show_default="the context",
        ),
    ] = None,
    device: options.Device = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            exists=True,
            file_okay=False,
            help="Checkpoint that the bundle MODEL was compiled from; a layer is compared with it.",
        ),
    ] = None,
    simulator: Annotated[
        bool, typer.Option("--simulator", help="Also compile and simulate a layer, in about 15 seconds.")
    ] = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Check this machine, and say what to do about each problem.

    Nothing is changed: commands are shown, never run. Each engine that is here is tested by computing
    something with a known answer. Exit code 1 means that something that MODEL or the machine's TPU needs
    has failed.
    """
    from baichuan2_tpu.doctor import Host, Machine, ProofSettings, examine, find_tpu, prove

    if checkpoint is not None and model is None:
        raise typer.BadParameter("--checkpoint needs the bundle that was compiled from it as MODEL")
    host, machine = Host.here(), Machine()
    report = examine(machine, host, model=model, context=context, rows=rows, device=device)
    if checkpoint is not None and report.need is not None and not report.need.has_manifest:
        raise typer.BadParameter("--checkpoint needs a bundle that was compiled from it; MODEL is not one")
    settings = ProofSettings.of(report.need, checkpoint=checkpoint, device=device, simulator=simulator)
    report = report.with_proofs(prove(host, find_tpu(machine, device), settings))
    if as_json:
        write_result(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
    else:
        draw(report)
    if not report.is_ok:
        raise typer.Exit(1)


def draw(report: Report) -> None:
    """Print one line per finding, and below it the next step where there is one."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, width=_WIDTH, highlight=False, soft_wrap=True)
    width = max(len(finding.name) for finding in report.findings)
    for finding in report.findings:
        name = f"{finding.name:<{width}}  "
        first, *others = _lines(finding, _WIDTH - len(finding.status) - 1 - len(name))
        console.print(Text(f"{finding.status} ", style=_STYLES[finding.status]) + Text(name + first))
        for line in others:
            console.print(Text(line if line.startswith(_COMMAND) else f"{'':<{width + 7}}{line}"))
    statuses = [finding.status for finding in report.findings]
    summary = f"failed: {statuses.count('fail')}, warnings: {statuses.count('warn')}"
    console.print(Text(summary, style="bold"))


def _lines(finding: Finding, width: int) -> Iterator[str]:
    """Yield what is written of a finding: what was seen, what should be, what to do.

    Commands are not wrapped, and stand at the margin: they are there to be copied.
    """
    is_right = finding.status in ("pass", "info")
    seen = (
        finding.value if is_right or not finding.allowed else f"{finding.value}; expected: {finding.allowed}"
    )
    yield from textwrap.wrap(printable(seen), width, break_on_hyphens=False)
    for step in map(printable, finding.next_step):
        if step.startswith(_COMMAND):
            yield step
        else:
            yield from textwrap.wrap(f"→ {step}", width, subsequent_indent="  ", break_on_hyphens=False)
