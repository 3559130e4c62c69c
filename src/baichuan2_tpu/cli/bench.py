"""``baichuan2 bench``: how fast a model answers here, beside what the machine can do.

Not here: measuring (``baichuan2_tpu.bench``).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.models import EngineSettings, check_memory, open_model, read_config, resolve
from baichuan2_tpu.cli.terminal import notice, write_result

if TYPE_CHECKING:
    from pathlib import Path

    from baichuan2_tpu.bench import BenchReport, BenchSettings, BundleBenchSettings, BundleReport
    from baichuan2_tpu.engine.base import Engine

__all__ = ["bench"]


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Checkpoint or bundle directory, .gguf file, or known name."),
    ] = None,
    *,
    shape: Annotated[
        str | None,
        typer.Option("--shape", help="In place of MODEL: random weights in memory (baichuan2-7b, …)."),
    ] = None,
    bits: Annotated[
        options.BitsName | None,
        typer.Option("--bits", help="Bits a weight, with --shape.", show_default="4"),
    ] = None,
    prefill: Annotated[
        int | None,
        typer.Option(
            "--prefill",
            min=1,
            help="Tokens of the long prompt.",
            show_default="512; several for a bundle; none on the simulator",
        ),
    ] = None,
    decode: Annotated[
        int | None,
        typer.Option("--decode", min=1, help="Tokens of the answer.", show_default="32; 2 on the simulator"),
    ] = None,
    repetitions: Annotated[
        int | None,
        typer.Option("--repetitions", min=1, help="Runs that count.", show_default="3; 1 on the simulator"),
    ] = None,
    context: options.Context = None,
    threads: options.Threads = None,
    engine: options.Engine = options.EngineName.AUTO,
    device: options.Device = 0,
    exact: options.Exact = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how fast a model answers here.

    Prints load, first token, prefill and decode, as median and spread, beside the machine's limits; of a
    bundle, the first token by the length of the prompt, and decode. Then comes the line of a performance
    table, in Markdown; the last line is one JSON object.
    """
    from baichuan2_tpu.manifest import find_bmodel, is_bundle

    if (model is None) == (shape is None):
        raise typer.BadParameter("give either MODEL or --shape")
    if bits is not None and shape is None:
        raise typer.BadParameter("--bits needs --shape; a model has bits of its own")
    opening = EngineSettings(engine.value, device, context, threads, exact)
    wished = _Lengths(prefill, decode, repetitions)
    if model is None:
        report = _bench_shape(shape or "", bits or options.BitsName.FOUR, wished, opening)
    elif is_bundle(directory := resolve(model)):
        report = _bench_bundle(model, directory, wished, opening)
    elif find_bmodel(directory):
        report = _bench_bmodel(model, directory, wished, opening)
    else:
        report = _bench_checkpoint(model, directory, wished, opening)
    _show(report, as_json=as_json)


@dataclass(frozen=True, slots=True)
class _Lengths:
    """What the user said of the lengths; None leaves it to the model."""

    prefill: int | None
    decode: int | None
    repetitions: int | None

    def settings(self, prompt: tuple[int, ...], threads: int | None) -> BenchSettings:
        """Return the settings on this machine's processor."""
        from baichuan2_tpu.bench import BenchSettings, available_threads

        return BenchSettings(
            prompt=prompt,
            prefill_tokens=self.prefill or 512,
            decode_tokens=self.decode or 32,
            repetitions=self.repetitions or 3,
            threads=threads or available_threads(),
        )

    def bundle_settings(
        self, prompt: tuple[int, ...], lengths: tuple[int, ...], *, is_simulated: bool
    ) -> BundleBenchSettings:
        """Return the settings for a bundle; the simulator takes seconds a token, and warms up nothing."""
        from baichuan2_tpu.bench import BundleBenchSettings

        usual = () if is_simulated else lengths
        return BundleBenchSettings(
            prompt=prompt,
            lengths=usual if self.prefill is None else (self.prefill,),
            decode_tokens=self.decode or (2 if is_simulated else 32),
            warmups=0 if is_simulated else 1,
            repetitions=self.repetitions or (1 if is_simulated else 3),
        )


def _bench_checkpoint(model: str, directory: Path, wished: _Lengths, opening: EngineSettings) -> BenchReport:
    from baichuan2_tpu.bench import run_bench

    prompt = _prompt_ids(directory, read_config(directory).max_context)
    settings = wished.settings(prompt, opening.threads)
    return run_bench(lambda: open_model(directory, opening), settings, model=model, on_step=notice)


def _bench_bundle(model: str, directory: Path, wished: _Lengths, opening: EngineSettings) -> BundleReport:
    from baichuan2_tpu.bench import prompt_lengths, run_bundle_bench
    from baichuan2_tpu.manifest import Manifest

    manifest = Manifest.read(directory)
    context = manifest.checked_context(opening.context)
    settings = wished.bundle_settings(
        _prompt_ids(directory, context),
        prompt_lengths(context),
        is_simulated=opening.engine == "simulator",
    )
    return run_bundle_bench(
        lambda: open_model(directory, opening), settings, model=model, manifest=manifest, on_step=notice
    )


def _bench_bmodel(model: str, directory: Path, wished: _Lengths, opening: EngineSettings) -> BundleReport:
    """Measure a bmodel without a manifest: after the vendor's prompt alone, as the vendor does."""
    from baichuan2_tpu.bench import run_bundle_bench
    from baichuan2_tpu.engine.compiled.open_vendor_bmodel import read_vendor_config

    prompt = _prompt_ids(directory, read_vendor_config(directory).max_context)
    settings = wished.bundle_settings(prompt, (), is_simulated=opening.engine == "simulator")
    return run_bundle_bench(
        lambda: open_model(directory, opening), settings, model=model, manifest=None, on_step=notice
    )


def _prompt_ids(directory: Path, budget: int) -> tuple[int, ...]:
    """Return the vendor's prompt as this model wants it written."""
    from baichuan2_tpu.bench import VENDOR_PROMPT
    from baichuan2_tpu.text.messages import Message
    from baichuan2_tpu.text.registry import open_tokenizer
    from baichuan2_tpu.text.template import open_template

    template = open_template(directory, open_tokenizer(directory))
    return template.render([Message("user", VENDOR_PROMPT)], budget).ids


def _bench_shape(
    shape: str, bits: options.BitsName, wished: _Lengths, opening: EngineSettings
) -> BenchReport:
    """Make random weights before the clock runs; the load time is then the engine's own."""
    from baichuan2_tpu.bench import run_bench, vendor_prompt_ids
    from baichuan2_tpu.checkpoint.random_weights import RandomWeights
    from baichuan2_tpu.engine.cpu import CpuEngine
    from baichuan2_tpu.shapes import shape_config

    if opening.engine not in ("auto", "cpu"):
        raise typer.BadParameter("--shape runs on the cpu engine alone")
    config = shape_config(shape, bits.bits)
    check_memory(config, opening.context)
    weights = RandomWeights(config)

    def open_engine() -> Engine:
        return CpuEngine(weights, context=opening.context, threads=opening.threads, is_exact=opening.is_exact)

    settings = wished.settings(vendor_prompt_ids(config), opening.threads)
    return run_bench(open_engine, settings, model=f"{shape} (random weights)", on_step=notice)


def _show(report: BenchReport | BundleReport, *, as_json: bool) -> None:
    """Print the figures, the performance table and one JSON object, or the object alone."""
    from baichuan2_tpu.bench import performance_table

    if not as_json:
        rows = report.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        for name, figure, ceiling in rows:
            write_result(f"{name:<{widths[0]}}  {figure:<{widths[1]}}  {ceiling}".rstrip() + "\n")
        table = performance_table([report.performance])
        write_result("\n" + "\n".join(table) + "\n\n")
    write_result(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
