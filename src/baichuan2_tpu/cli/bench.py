"""``baichuan2 bench``: how fast a model answers here, beside what the machine can do.

Not here: measuring (``baichuan2_tpu.bench``).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.models import EngineSettings, check_memory, open_model, read_config, resolve
from baichuan2_tpu.cli.terminal import notice, write_result

if TYPE_CHECKING:
    from pathlib import Path

    from baichuan2_tpu.bench import BenchReport, BenchSettings
    from baichuan2_tpu.engine.base import Engine

__all__ = ["bench"]


def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="Checkpoint directory, .gguf file, or known name.")
    ] = None,
    *,
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="In place of MODEL: random weights in memory (baichuan2-7b, …)."),
    ] = None,
    bits: Annotated[options.BitsName, typer.Option("--bits", help="Bits a weight, with --shape.")] = (
        options.BitsName.FOUR
    ),
    prefill: Annotated[int, typer.Option("--prefill", min=1, help="Tokens of the long prompt.")] = 512,
    decode: Annotated[int, typer.Option("--decode", min=1, help="Tokens of the answer.")] = 32,
    repetitions: Annotated[int, typer.Option("--repetitions", min=1, help="Runs that count.")] = 3,
    context: options.Context = None,
    threads: options.Threads = None,
    engine: options.Engine = options.EngineName.AUTO,
    exact: options.Exact = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how fast a model answers here.

    Prints load, first token, prefill and decode, as median and spread, beside the machine's limits; the last
    line is one JSON object.
    """
    from baichuan2_tpu.bench import BenchSettings, available_threads, run_bench

    if (model is None) == (shape is None):
        raise typer.BadParameter("give either MODEL or --shape")
    opening = EngineSettings(engine.value, context, threads, exact)
    settings = BenchSettings(
        prefill_tokens=prefill,
        decode_tokens=decode,
        repetitions=repetitions,
        threads=threads or available_threads(),
    )
    if model is not None:
        directory = resolve(model)
        settings = replace(settings, prompt=_prompt_ids(directory))
        open_engine = _open_directory(directory, opening)
    else:
        settings, open_engine = _random_shape(shape or "", bits, settings, opening)
    report = run_bench(open_engine, settings, model=model or f"{shape} (random weights)", on_step=notice)
    _show(report, as_json=as_json)


def _open_directory(directory: Path, opening: EngineSettings) -> Callable[[], Engine]:
    return lambda: open_model(directory, opening)


def _prompt_ids(directory: Path) -> tuple[int, ...]:
    """Return the vendor's prompt as this model wants it written."""
    from baichuan2_tpu.bench import VENDOR_PROMPT
    from baichuan2_tpu.text.messages import Message
    from baichuan2_tpu.text.registry import open_tokenizer
    from baichuan2_tpu.text.template import open_template

    template = open_template(directory, open_tokenizer(directory))
    return template.render([Message("user", VENDOR_PROMPT)], read_config(directory).max_context).ids


def _random_shape(
    shape: str, bits: options.BitsName, settings: BenchSettings, opening: EngineSettings
) -> tuple[BenchSettings, Callable[[], Engine]]:
    """Make random weights before the clock runs; the load time is then the engine's own."""
    from baichuan2_tpu.bench import vendor_prompt_ids
    from baichuan2_tpu.checkpoint.random_weights import RandomWeights, shape_config
    from baichuan2_tpu.engine.cpu import CpuEngine

    config = shape_config(shape, bits.bits)
    check_memory(config, opening.context)
    weights = RandomWeights(config)

    def open_engine() -> Engine:
        return CpuEngine(weights, context=opening.context, threads=opening.threads, is_exact=opening.is_exact)

    return replace(settings, prompt=vendor_prompt_ids(config)), open_engine


def _show(report: BenchReport, *, as_json: bool) -> None:
    """Print the figures as a table and as one JSON object, or as the object alone."""
    if not as_json:
        rows = report.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        for name, figure, ceiling in rows:
            write_result(f"{name:<{widths[0]}}  {figure:<{widths[1]}}  {ceiling}".rstrip() + "\n")
    write_result(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
