"""``baichuan2 quantize``: make a quantised checkpoint out of a float one.

Not here: the method (``baichuan2_tpu.quantize``).
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.terminal import byte_bar, notice, progress_bar

__all__ = ["quantize"]


class MethodName(str, Enum):
    """Ways to choose integers."""

    SEARCH = "search"
    SCALE = "scale"
    GPTQ = "gptq"


Source = Annotated[
    str,
    typer.Argument(
        metavar="SRC", help="Checkpoint directory, .gguf file, or known name (demo, baichuan2-7b-chat, …)."
    ),
]
Method = Annotated[
    MethodName | None,
    typer.Option(
        "--method",
        help="How integers are chosen: search needs the weights alone, scale some minutes more for a text's "
        "inputs, and gptq, the most accurate, an hour or more.",
        show_default="scale for 4 bits, search for 8",
    ),
]
CalibrationText = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="UTF-8 text to calibrate with; - reads standard input.",
        show_default="scale: ours; gptq: the model writes it",
    ),
]
CalibrationTokens = Annotated[
    int | None,
    typer.Option(
        "--calibration-tokens",
        min=1,
        help="Tokens to calibrate with.",
        show_default="scale: 2048; gptq: 8192",
    ),
]


def quantize(
    source: Source,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Directory to make.")],
    *,
    bits: options.Bits = options.BitsName.FOUR,
    head_bits: options.HeadBits = options.BitsName.EIGHT,
    group_size: options.GroupSize = 64,
    method: Method = None,
    calibration: CalibrationText = None,
    calibration_tokens: CalibrationTokens = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Threads to use.")] = 2,
    debug: options.Debug = False,
) -> None:
    """Make a quantised checkpoint DST out of SRC.

    If it is interrupted, finished files stay beside DST, and the same command continues.
    """
    from baichuan2_tpu.config import default_method
    from baichuan2_tpu.quantize import Calibration
    from baichuan2_tpu.quantize import quantize as write_quantized
    from baichuan2_tpu.quantize.driver import check_destination
    from baichuan2_tpu.quantize.plan import quantization_settings
    from baichuan2_tpu.resolve import find_source
    from baichuan2_tpu.text.user_text import read_user_text

    chosen = MethodName(default_method(bits.bits)) if method is None else method
    if chosen is MethodName.SEARCH and (calibration or calibration_tokens):
        raise typer.BadParameter("--calibration and --calibration-tokens need --method scale or gptq")
    # Before gigabytes are fetched: what is wrong without them.
    check_destination(destination)
    quantization_settings(bits.bits, group_size, head_bits.bits)
    if calibration is not None and str(calibration) != "-":  # standard input is read once
        read_user_text(calibration)
    with byte_bar("fetching") as fetching:
        path = find_source(source, notice, fetching).path
    with progress_bar("quantising") as progress:
        write_quantized(
            path,
            destination,
            bits=bits.bits,
            head_bits=head_bits.bits,
            group_size=group_size,
            method=chosen.value,
            calibration=Calibration(calibration, calibration_tokens),
            workers=workers,
            progress=progress,
            notice=notice,
        )
    notice(f"wrote {destination}")
