"""``baichuan2 quantize``: make a quantised checkpoint out of a float one.

Not here: the method (``baichuan2_tpu.quantize``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.terminal import notice, progress_bar

__all__ = ["quantize"]


def quantize(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="Checkpoint directory, .gguf file, or known name (demo).")
    ],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Directory to make.")],
    *,
    bits: options.Bits = options.BitsName.FOUR,
    head_bits: options.HeadBits = options.BitsName.EIGHT,
    group_size: options.GroupSize = 64,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Threads that quantise.")] = 2,
    debug: options.Debug = False,
) -> None:
    """Make a quantised checkpoint DST out of SRC.

    What is finished stays beside DST when it is interrupted; the same command goes on.
    """
    from baichuan2_tpu.quantize import quantize as write_quantized
    from baichuan2_tpu.resolve import find_source

    path = find_source(source, notice)
    with progress_bar("quantising") as progress:
        write_quantized(
            path,
            destination,
            bits=bits.bits,
            head_bits=head_bits.bits,
            group_size=group_size,
            workers=workers,
            progress=progress,
        )
    notice(f"wrote {destination}")
