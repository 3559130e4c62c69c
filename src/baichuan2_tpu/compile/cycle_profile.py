"""Read what the compiler's cycle model says of one compiled net.

A static compile leaves ``compiler_profile_0.txt``: every instruction of both engines, and at the end totals
of cycles, of bytes by direction and of floating point operations. Only the totals are read. They leave out
dynamic parts, so every part of a net must be static, as all of ours are. Not here: what a token costs
(``estimate``). Source: the backend of TPU-MLIR 1.30.2, whose format is nowhere documented.
"""

from __future__ import annotations

import re
from pathlib import Path

from baichuan2_tpu.errors import CompileError
from baichuan2_tpu.manifest import NetCost, Stage

__all__ = ["PROFILE_NAME", "read_cost"]

PROFILE_NAME = "compiler_profile_0.txt"
_CYCLES_PER_MS = 1e6
"""The model's clock is 1 GHz: its own "runtime" is the number of cycles divided by this."""

_CYCLES = re.compile(r"^TCYC : (\d+) *$", re.MULTILINE)
# S2L is system to local memory, S2S from one place of the DDR to another: both read the DDR.
_READS = re.compile(r"^GDMA SUMMARY : .*\bS2L:(\d+)\|.*\bS2S:(\d+)\|", re.MULTILINE)
_FLOPS = re.compile(r"^flops: (\d+), runtime: ", re.MULTILINE)


def read_cost(path: Path, *, net: str, stage: Stage) -> NetCost:
    """Read the cost of one launch; a net that only copies, as an embedding does, has no total of operations.

    Raises: CompileError, naming the file, where a total is missing or there twice.
    """
    try:
        text = path.read_text("ascii", errors="replace")
    except OSError as error:
        raise CompileError(
            f"{path}: the compiler left no profile ({error.strerror}); compile {net} again, as a static net"
        ) from error
    cycles, reads, flops = _CYCLES.findall(text), _READS.findall(text), _FLOPS.findall(text)
    if len(cycles) != 1 or len(reads) != 1 or len(flops) > 1:
        raise CompileError(
            f"{path}: has {len(cycles)} totals of cycles, {len(reads)} of bytes and {len(flops)} of "
            f"operations, the profile of a static net has one of each; compile {net} again"
        )
    to_local, within_memory = reads[0]
    return NetCost(
        net=net,
        tokens=stage.tokens,
        history=stage.history,
        time_ms=int(cycles[0]) / _CYCLES_PER_MS,
        read_bytes=int(to_local) + int(within_memory),
        flops=int(flops[0]) if flops else 0,
    )
