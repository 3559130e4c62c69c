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
    MethodName,
    typer.Option(
        "--method",
        help="How integers are chosen: search is quick; gptq calibrates with a text and is more accurate.",
    ),
]
CalibrationText = Annotated[
    Path | None,
    typer.Option(
        "--calibration",
        metavar="FILE",
        help="UTF-8 text to calibrate with; - reads standard input.",
        show_default="the model writes it",
    ),
]
CalibrationTokens = Annotated[
    int | None,
    typer.Option("--calibration-tokens", min=1, help="Tokens to calibrate with.", show_default="32768"),
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
    method: Method = MethodName.SEARCH,
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
    from baichuan2_tpu.quantize import DEFAULT_TOKENS, Calibration
    from baichuan2_tpu.quantize import quantize as write_quantized
    from baichuan2_tpu.quantize.driver import check_destination
    from baichuan2_tpu.quantize.repack import choose_settings
    from baichuan2_tpu.resolve import find_source
    from baichuan2_tpu.text.user_text import read_user_text

    if method is MethodName.SEARCH and (calibration or calibration_tokens):
        raise typer.BadParameter("--calibration and --calibration-tokens need --method gptq")
    # Before gigabytes are fetched: what is wrong without them.
    check_destination(destination)
    choose_settings(None, _number(bits), group_size, _number(head_bits), "search")
    for adapter in adapters or ():
        AdapterSettings.read(adapter)
    if calibration is not None and str(calibration) != "-":  # standard input is read once
        read_user_text(calibration)
    settings = Calibration(calibration, calibration_tokens or DEFAULT_TOKENS)
    with byte_bar("fetching") as fetching:
        path = find_source(source, notice, fetching, adapters=adapters or ()).path
    with progress_bar("quantising") as progress:
        write_quantized(
            path,
            destination,
            bits=_number(bits),
            head_bits=_number(head_bits),
            group_size=group_size,
            calibration=None if method is MethodName.SEARCH else settings,
            adapters=adapters or (),
            workers=workers,
            progress=progress,
            notice=notice,
        )
    notice(f"wrote {destination}")


def _number(bits: options.BitsName | None) -> int | None:
    return None if bits is None else bits.bits
