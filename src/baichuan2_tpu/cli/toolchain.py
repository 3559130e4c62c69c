"""``baichuan2 toolchain``: install TPU-MLIR and its simulator, show what is there, delete it.

Not here: how (``baichuan2_tpu.toolchain``), the check at the end
(``baichuan2_tpu.doctor.proofs.prove_toolchain``).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.terminal import byte_bar, notice, write_result

if TYPE_CHECKING:
    from baichuan2_tpu.toolchain import Toolchain

__all__ = ["toolchain"]

Place = Annotated[
    Path | None, typer.Option("--path", help="Folder of the installation.", show_default="the user's cache")
]

toolchain = typer.Typer(
    name="toolchain",
    help="Install TPU-MLIR, which compiles for the TPU, and its simulator.",
)


@toolchain.command()
def install(
    *,
    path: Place = None,
    simulator_only: Annotated[
        bool, typer.Option("--simulator-only", help="Install only the simulator: 19 MB instead of 283 MB.")
    ] = False,
    wheel: Annotated[
        Path | None, typer.Option("--wheel", help="Wheel of tpu_mlir 1.30.2 that you downloaded yourself.")
    ] = None,
    debug: options.Debug = False,
) -> None:
    """Install TPU-MLIR from its wheel and check it: compile a layer, simulate it, compare with numpy.

    The wheel (312 MB) is fetched by pip and verified. A complete installation is kept.
    """
    from baichuan2_tpu.toolchain import install_simulator, install_toolchain

    with byte_bar("downloading") as progress:
        if simulator_only:
            folder = install_simulator(path, wheel=wheel, notice=notice, progress=progress)
            notice(f"installed {folder}")
            return
        installed = install_toolchain(path, wheel=wheel, notice=notice, progress=progress)
    _check(installed)
    notice(f"installed {installed.root}")


@toolchain.command()
def info(*, path: Place = None, as_json: options.Json = False, debug: options.Debug = False) -> None:
    """Show what is installed and whether it can be used; every file is compared with its sha256."""
    from baichuan2_tpu.toolchain.status import read_status

    facts = asdict(read_status(path))
    if as_json:
        write_result(json.dumps(facts, ensure_ascii=False) + "\n")
        return
    for name, value in facts.items():
        shown = f"{value / 1e6:.0f} MB" if name.endswith("_bytes") else value
        write_result(f"{name:<24}{shown}\n")


@toolchain.command()
def remove(*, path: Place = None, debug: options.Debug = False) -> None:
    """Delete the installation in --path, or everything of TPU-MLIR in the user's cache."""
    from baichuan2_tpu.toolchain import remove as remove_installation

    removed = remove_installation(path)
    for folder in removed:
        notice(f"deleted {folder}")
    if not removed:
        notice("nothing was installed")


def _check(installed: Toolchain) -> None:
    """Run the check and say what it measured."""
    from baichuan2_tpu.doctor.proofs.prove_toolchain import check_toolchain

    check = check_toolchain(installed)
    notice(
        f"checked: a layer compiled in {check.compile_s:.1f} s and simulated in {check.simulate_s:.1f} s "
        f"differs from numpy by {check.error:.1g}"
    )
