"""The options and arguments that verbs share, each defined once.

Not here: options of a single verb. Units are in the help texts; ranges are checked before anything is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal

import typer

__all__ = [
    "Bits",
    "BitsName",
    "Context",
    "Debug",
    "Device",
    "Engine",
    "EngineName",
    "Exact",
    "HeadBits",
    "Json",
    "KeepPacked",
    "Kv",
    "KvName",
    "MaxTokens",
    "MinP",
    "Model",
    "RepetitionPenalty",
    "Seed",
    "Settings",
    "Stop",
    "System",
    "Temperature",
    "Threads",
    "TopK",
    "TopP",
]

_FROM_MODEL = "the model's own"


@dataclass(slots=True)
class Settings:
    """Settings of the whole command, filled while the command line is parsed."""

    is_debug: bool = False


class EngineName(str, Enum):
    """Engines a user can ask for."""

    AUTO = "auto"
    CPU = "cpu"
    BMRT = "bmrt"
    SAIL = "sail"
    SIMULATOR = "simulator"


class KvName(str, Enum):
    """Widths of keys and values on the cpu."""

    EIGHT = "8"
    SIXTEEN = "16"

    @property
    def bits(self) -> Literal[8, 16]:
        """The width as a number."""
        return 8 if self is KvName.EIGHT else 16


class BitsName(str, Enum):
    """Widths a weight can be stored in."""

    FOUR = "4"
    EIGHT = "8"

    @property
    def bits(self) -> Literal[4, 8]:
        """The width as a number."""
        return 4 if self is BitsName.FOUR else 8


def _set_debug(context: typer.Context, value: bool) -> bool:
    if value and isinstance(context.obj, Settings):
        context.obj.is_debug = True
    return value


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Checkpoint or bundle directory, .gguf file, or known name (demo, baichuan2-7b-chat, …).",
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=_set_debug, is_eager=True, help="Show the traceback of an error.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]

Bits = Annotated[BitsName, typer.Option("--bits", help="Bits per weight.")]
HeadBits = Annotated[
    BitsName,
    typer.Option("--head-bits", help="Bits per weight of the output head; it suffers most at low precision."),
]

Engine = Annotated[
    EngineName,
    typer.Option(
        "--engine",
        help="Where to run: a checkpoint on the cpu; a bundle on a TPU, through bmrt (auto) or sail, or on "
        "the simulator.",
    ),
]
Device = Annotated[int, typer.Option("--device", min=0, help="Number of the TPU to run on.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="CPU threads.", show_default="one per core")
]
Context = Annotated[
    int | None,
    typer.Option("--context", min=1, help="Tokens a conversation can hold.", show_default=_FROM_MODEL),
]
Kv = Annotated[
    KvName | None,
    typer.Option(
        "--kv",
        help="Bits of keys and values on the cpu: int8 takes half the memory, float16 is exact.",
        show_default="8; 16 with --exact",
    ),
]
Exact = Annotated[
    bool, typer.Option("--exact", help="Compute activations in float32: slow, a reference for the fast mode.")
]

KeepPacked = Annotated[
    bool,
    typer.Option(
        "--keep-packed/--no-keep-packed",
        help="Keep a large model's weights in the cache as the kernels read them: quick starts on the cpu.",
    ),
]

System = Annotated[str | None, typer.Option("--system", help="System message.")]
Temperature = Annotated[
    float | None,
    typer.Option(
        "--temperature", min=0.0, help="0 always chooses the most likely token.", show_default=_FROM_MODEL
    ),
]
TopP = Annotated[
    float | None,
    typer.Option(
        "--top-p",
        min=0.0,
        max=1.0,
        help="Choose among the most likely tokens that together have this probability.",
        show_default=_FROM_MODEL,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        "--top-k",
        min=0,
        help="Choose among this many of the most likely tokens; 0 for all.",
        show_default=_FROM_MODEL,
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        "--min-p",
        min=0.0,
        max=1.0,
        help="Drop tokens less likely than this fraction of the most likely one.",
        show_default=_FROM_MODEL,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        "--repetition-penalty", min=0.01, help="Above 1 discourages repetition.", show_default=_FROM_MODEL
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, help="Same seed, same answer.", show_default="random")
]
MaxTokens = Annotated[
    int | None,
    typer.Option("--max-tokens", min=1, help="Longest answer, in tokens.", show_default=_FROM_MODEL),
]
Stop = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar="TEXT", help="End the answer before this text; may be repeated."),
]
