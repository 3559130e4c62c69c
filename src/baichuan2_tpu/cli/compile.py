"""``baichuan2 compile``: make a bundle for the TPU out of a checkpoint, or say what that would take.

Not here: how (``baichuan2_tpu.compile``).
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.models import resolve
from baichuan2_tpu.cli.terminal import byte_bar, notice, write_result

if TYPE_CHECKING:
    from baichuan2_tpu.compile.driver import BuildSettings, CompileEvent
    from baichuan2_tpu.compile.plan import Plan
    from baichuan2_tpu.compile.settings import CompileSettings
    from baichuan2_tpu.manifest import Stage

__all__ = ["compile_checkpoint"]

_FROM_CHECKPOINT = "the checkpoint's own"
_STAGE = re.compile(r"(\d+)x(\d+)")


class _Bits(str, Enum):
    FOUR = "4"
    EIGHT = "8"
    SIXTEEN = "16"

    @property
    def number(self) -> Literal[4, 8, 16]:
        """The width as a number."""
        if self is _Bits.FOUR:
            return 4
        return 8 if self is _Bits.EIGHT else 16


class _Head(str, Enum):
    W4 = "w4"
    W8 = "w8"
    F16 = "f16"


class _HeadOutput(str, Enum):
    LOGITS = "logits"
    TOKEN = "token"  # noqa: S105 - no password
    SAMPLE = "sample"


class _Embedding(str, Enum):
    DISK = "disk"
    DEVICE = "device"


class _Dtype(str, Enum):
    F16 = "f16"
    BF16 = "bf16"


_Checkpoint = Annotated[
    str,
    typer.Argument(
        metavar="QCKPT", help="Directory of a checkpoint, or known name (demo, baichuan2-7b-chat, …)."
    ),
]
_Destination = Annotated[Path, typer.Argument(metavar="OUT", help="Directory of the bundle to make.")]
_Context = Annotated[int, typer.Option("--context", min=1, help="Tokens one conversation can hold.")]
_Rows = Annotated[
    int | None,
    typer.Option(
        "--rows", min=1, help="Tokens that all conversations together can hold.", show_default="the context"
    ),
]
_Stages = Annotated[
    str | None,
    typer.Option(
        "--stages",
        metavar="TxS,TxS,…",
        help="Sizes of launches to compile: T new tokens after up to S rows of history.",
        show_default="chosen by what each saves",
    ),
]
_LayersPerNet = Annotated[
    int | None,
    typer.Option(
        "--layers-per-net",
        min=1,
        help="Layers that one launch computes: more of them take more memory to compile.",
        show_default="4, or what two jobs below 8 GB allow",
    ),
]
_LayerBits = Annotated[
    _Bits | None, typer.Option("--bits", help="Bits per weight of the layers.", show_default=_FROM_CHECKPOINT)
]
_HeadForm = Annotated[
    _Head | None, typer.Option("--head", help="Precision of the output head.", show_default=_FROM_CHECKPOINT)
]
_HeadGives = Annotated[
    _HeadOutput,
    typer.Option(
        "--head-output",
        help="What the head returns: all logits, the most likely token, or the 64 most likely.",
    ),
]
_EmbeddingPlace = Annotated[
    _Embedding, typer.Option("--embedding", help="Where the embedding table is kept.")
]
_Float = Annotated[_Dtype, typer.Option("--dtype", help="Type of the activations and of the KV cache.")]
_Devices = Annotated[int, typer.Option("--devices", min=1, help="TPUs that share the model.")]
_Jobs = Annotated[int, typer.Option("--jobs", min=1, help="Compilers that run at the same time.")]
_KeepWork = Annotated[
    bool, typer.Option("--keep-work", help="Leave logs and intermediate files in OUT.partial.")
]
_Place = Annotated[
    Path | None, typer.Option("--toolchain", help="Folder of TPU-MLIR.", show_default="the user's cache")
]
_DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Print what would be built, and the time and memory it takes, and stop."),
]
_PlanJson = Annotated[bool, typer.Option("--json", help="With --dry-run: print one JSON object.")]


def compile_checkpoint(
    checkpoint: _Checkpoint,
    destination: _Destination,
    *,
    context: _Context = 512,
    rows: _Rows = None,
    stages: _Stages = None,
    layers_per_net: _LayersPerNet = None,
    bits: _LayerBits = None,
    head: _HeadForm = None,
    head_output: _HeadGives = _HeadOutput.LOGITS,
    embedding: _EmbeddingPlace = _Embedding.DISK,
    dtype: _Float = _Dtype.F16,
    devices: _Devices = 1,
    jobs: _Jobs = 2,
    keep_work: _KeepWork = False,
    toolchain: _Place = None,
    dry_run: _DryRun = False,
    as_json: _PlanJson = False,
    debug: options.Debug = False,
) -> None:
    """Compile the checkpoint QCKPT into the bundle OUT, for the BM1684X.

    The integers of a quantised checkpoint are taken as they are. What is finished stays beside OUT when it is
    interrupted; the same command continues.
    """
    from baichuan2_tpu.compile.assemble import open_source
    from baichuan2_tpu.compile.driver import BuildSettings
    from baichuan2_tpu.compile.plan import default_layers_per_net, make_plan
    from baichuan2_tpu.compile.settings import (
        CompileSettings,
        compiled_group_size,
        default_bits,
        default_head,
    )
    from baichuan2_tpu.toolchain import find_toolchain

    if as_json and not dry_run:
        raise typer.BadParameter("--json goes with --dry-run")
    directory = _directory(checkpoint, bits)
    config = open_source(directory).config
    settings = CompileSettings(
        bits=default_bits(config) if bits is None else bits.number,
        head=default_head(config) if head is None else head.value,
        context=context,
        rows=rows or context,
        stages=_parse_stages(stages, context, rows or context),
        dtype="float16" if dtype is _Dtype.F16 else "bfloat16",
        head_output=head_output.value,
        embedding=embedding.value,
        devices=devices,
    )
    settings = replace(settings, layers_per_net=layers_per_net or default_layers_per_net(config, settings))
    settings.check(config)
    plan = make_plan(config, settings, jobs)
    if dry_run:
        _show(_facts(plan, settings, compiled_group_size(config)), as_json=as_json)
        return
    _warn_of_memory(plan)
    _build(directory, destination, settings, BuildSettings(find_toolchain(toolchain), jobs, keep_work))


def _build(checkpoint: Path, destination: Path, settings: CompileSettings, build: BuildSettings) -> None:
    """Build with a progress bar."""
    from baichuan2_tpu.compile.driver import compile_bundle

    with byte_bar("compiling") as draw:

        def draw_event(event: CompileEvent) -> None:
            if draw is not None:
                draw(event.done_bytes, event.total_bytes)

        compile_bundle(checkpoint, destination, settings, build, progress=draw_event, notice=notice)
    notice(f"wrote {destination}")


def _parse_stages(text: str | None, context: int, rows: int) -> tuple[Stage, ...]:
    from baichuan2_tpu.compile.settings import default_stages, sort_stages
    from baichuan2_tpu.manifest import Stage

    if text is None:
        return default_stages(context, rows)
    pairs = [_STAGE.fullmatch(part.strip()) for part in text.split(",")]
    stages = [Stage(int(pair[1]), int(pair[2])) for pair in pairs if pair]
    if len(stages) < len(pairs):
        raise typer.BadParameter(f"--stages is {text!r}, allowed are pairs such as 1x512,16x512,64x512")
    return sort_stages(stages)


def _directory(checkpoint: str, bits: _Bits | None) -> Path:
    """Return the checkpoint's directory; a known name is quantised first, a path is taken as it is."""
    from baichuan2_tpu.resolve import KNOWN_MODELS, ResolveSettings

    if checkpoint not in KNOWN_MODELS:
        return Path(checkpoint).expanduser()
    number = None if bits is None else bits.number
    return resolve(checkpoint, ResolveSettings(None if number == 16 else number)).path


def _warn_of_memory(plan: Plan) -> None:
    from baichuan2_tpu.memory import machine_memory_bytes

    has_bytes = machine_memory_bytes()
    if plan.memory_bytes > has_bytes:
        notice(
            f"warning: compiling takes about {plan.memory_bytes / 1e9:.1f} GB of memory, this machine has "
            f"{has_bytes / 1e9:.1f} GB; --jobs 1 takes less"
        )


def _facts(plan: Plan, settings: CompileSettings, group_size: int) -> dict[str, object]:
    """Return everything that is shown, by its name in the JSON form."""
    return {
        "context": settings.context,
        "rows": settings.rows,
        "stages": [f"{stage.tokens}x{stage.history}" for stage in settings.stages],
        "head_rows": list(settings.head_rows),
        "layers_per_net": settings.layers_per_net,
        "nets": len(plan.units),
        "launches_per_token": plan.launches,
        "compiler_calls": plan.stages,
        "bits": settings.bits,
        "group_size": group_size,
        "head": settings.head,
        "head_output": settings.head_output,
        "embedding": settings.embedding,
        "dtype": settings.dtype,
        "jobs": plan.jobs,
        "time_s": round(plan.time_s),
        "memory_bytes": plan.memory_bytes,
        "peak_disk_bytes": plan.peak_disk_bytes,
        "bundle_bytes": plan.result_bytes,
        "device_bytes": plan.device_bytes,
        "history_bytes": plan.history_bytes,
        "instruction_bytes": plan.instruction_bytes,
    }


def _show(facts: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        write_result(json.dumps(facts) + "\n")
        return
    for name, value in facts.items():
        write_result(f"{name:<24}{_format_value(name, value)}\n")


def _format_value(name: str, value: object) -> str:
    """Write a value for a person."""
    if isinstance(value, int) and name.endswith("_bytes"):
        return f"{value / 1e9:.2f} GB"
    if isinstance(value, list):
        return ", ".join(str(item) for item in cast("list[object]", value))
    return f"about {value} s" if name == "time_s" else str(value)
