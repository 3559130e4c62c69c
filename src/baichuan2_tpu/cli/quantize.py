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
Bits = Annotated[
    options.BitsName | None,
    typer.Option("--bits", help="Bits per weight.", show_default="4, or as SRC has"),
]
HeadBits = Annotated[
    options.BitsName | None,
    typer.Option(
        "--head-bits",
        help="Bits per weight of the output head; it suffers most at low precision.",
        show_default="8, or as SRC has",
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        "--group-size",
        min=1,
        help="Consecutive input columns that share a scale.",
        show_default="64, or as SRC has",
    ),
]
Method = Annotated[
    MethodName | None,
    typer.Option(
        "--method",
        help="How integers are chosen: search needs the weights alone, scale some minutes more for a text's "
        "inputs, and gptq, the most accurate, an hour or more.",
        show_default="scale for 4 bits, search for 8 and to keep integers",
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
Adapters = Annotated[
    list[Path] | None,
    typer.Option(
        "--adapter",
        metavar="DIR",
        help="LoRA adapter (a folder that PEFT saved) to merge into SRC first; several are merged in order.",
    ),
]


def quantize(
    source: Source,
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Directory to make.")],
    *,
    bits: Bits = None,
    head_bits: HeadBits = None,
    group_size: GroupSize = None,
    method: Method = None,
    calibration: CalibrationText = None,
    calibration_tokens: CalibrationTokens = None,
    adapters: Adapters = None,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Threads to use.")] = 2,
    debug: options.Debug = False,
) -> None:
    """Make a quantised checkpoint DST out of SRC.

    Where another tool quantised SRC (GPTQ, AWQ, compressed-tensors), its integers are kept unless other
    bits or groups are asked for.
    If it is interrupted, finished files stay beside DST, and the same command continues.
    """
    from baichuan2_tpu.checkpoint.adapter_settings import AdapterSettings
    from baichuan2_tpu.config import default_method
    from baichuan2_tpu.quantize import Calibration
    from baichuan2_tpu.quantize import quantize as write_quantized
    from baichuan2_tpu.quantize.driver import check_destination
    from baichuan2_tpu.quantize.repack import choose_settings
    from baichuan2_tpu.resolve import find_source
    from baichuan2_tpu.text.user_text import read_user_text

    is_calibrated = calibration is not None or calibration_tokens is not None
    chosen = default_method(_number(bits) or 4) if method is None else method.value
    if chosen == "search" and is_calibrated:
        raise typer.BadParameter("--calibration and --calibration-tokens need --method scale or gptq")
    # Before gigabytes are fetched: what is wrong without them.
    check_destination(destination)
    choose_settings(None, _number(bits), group_size, _number(head_bits), "search")
    for adapter in adapters or ():
        AdapterSettings.read(adapter)
    if calibration is not None and str(calibration) != "-":  # standard input is read once
        read_user_text(calibration)
    with byte_bar("fetching") as fetching:
        path = find_source(source, notice, fetching, adapters=adapters or ()).path
    with progress_bar("quantising") as progress:
        write_quantized(
            path,
            destination,
            bits=_number(bits),
            head_bits=_number(head_bits),
            group_size=group_size,
            method=None if method is None else method.value,
            calibration=Calibration(calibration, calibration_tokens) if is_calibrated else None,
            adapters=adapters or (),
            workers=workers,
            progress=progress,
            notice=notice,
        )
    notice(f"wrote {destination}")


def _number(bits: options.BitsName | None) -> int | None:
    return None if bits is None else bits.bits
