"""``baichuan2 bench``: how fast a model answers here, compared with what the machine can do.

Not here: measuring (``baichuan2_tpu.bench``).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from baichuan2_tpu.cli import options
from baichuan2_tpu.cli.models import find_model, open_model
from baichuan2_tpu.cli.terminal import notice, write_result

if TYPE_CHECKING:
    from collections.abc import Callable

    from baichuan2_tpu.bench import (
        BenchReport,
        BenchSettings,
        BundleBenchSettings,
        BundleReport,
        ProfileReport,
    )
    from baichuan2_tpu.config import ModelConfig
    from baichuan2_tpu.engine.base import Engine
    from baichuan2_tpu.model import EngineSettings, ModelFiles

__all__ = ["bench"]


_Shape = Annotated[
    str | None,
    typer.Option("--shape", help="Instead of MODEL: random weights in memory (baichuan2-7b, …)."),
]
_Bits = Annotated[
    options.BitsName | None,
    typer.Option("--bits", help="Bits per weight, with --shape.", show_default="4"),
]
_Prefill = Annotated[
    int | None,
    typer.Option(
        "--prefill",
        min=1,
        help="Tokens of the long prompt.",
        show_default="512; several for a bundle; none on the simulator",
    ),
]
_Decode = Annotated[
    int | None,
    typer.Option("--decode", min=1, help="Tokens of the answer.", show_default="32; 2 on the simulator"),
]
_Repetitions = Annotated[
    int | None,
    typer.Option("--repetitions", min=1, help="Measured runs.", show_default="3; 1 on the simulator"),
]
_Clients = Annotated[
    str | None,
    typer.Option(
        "--clients",
        metavar="N,N,…",
        help="Also measure this many answers at once, such as 1,4,16,32.",
        show_default=False,
    ),
]
_Profile = Annotated[
    bool,
    typer.Option(
        "--profile", help="Instead: where the time of a token goes, by kind of work; on the cpu engine."
    ),
]
_Picture = Annotated[
    Path | None,
    typer.Option("--picture", metavar="FILE", help="Draw the profile, as SVG.", show_default=False),
]


def bench(
    model: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Checkpoint or bundle directory, .gguf file, or known name."),
    ] = None,
    *,
    shape: _Shape = None,
    bits: _Bits = None,
    prefill: _Prefill = None,
    decode: _Decode = None,
    repetitions: _Repetitions = None,
    clients: _Clients = None,
    profile: _Profile = False,
    picture: _Picture = None,
    context: options.Context = None,
    threads: options.Threads = None,
    engine: options.Engine = options.EngineName.AUTO,
    device: options.Device = 0,
    exact: options.Exact = False,
    as_json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure how fast a model answers here.

    Prints the times of loading, first token, prefill and decode, as median and range, with the machine's
    limits; for a bundle, the time to the first token by prompt length, and decode. --clients adds a table of
    several answers at once: time per step, tokens per second, and what a step asks of the device. Then
    follow a row of a performance table, in Markdown, and on the last line one JSON object. --profile prints
    tables of the kinds of work instead: for a prompt, and for answers after a short and after a long one.
    """
    from baichuan2_tpu.model import EngineSettings

    if (model is None) == (shape is None):
        raise typer.BadParameter("give either MODEL or --shape")
    if bits is not None and shape is None:
        raise typer.BadParameter("--bits needs --shape; a model has bits of its own")
    opening = EngineSettings(engine.value, device, context, threads, exact)
    if picture is not None and not profile:
        raise typer.BadParameter("--picture needs --profile")
    lengths = _Lengths(prefill, decode, repetitions, _parse_clients(clients))
    source = _RandomModel(shape or "", bits or options.BitsName.FOUR) if model is None else find_model(model)
    if profile:
        _show_profile(_profile(source, lengths, opening), picture, as_json=as_json)
    elif isinstance(source, _RandomModel):
        _show(_bench_shape(source, lengths, opening), as_json=as_json)
    else:
        _show(_bench_model(source, lengths, opening), as_json=as_json)


@dataclass(frozen=True, slots=True)
class _RandomModel:
    """Random weights of an official shape."""

    shape: str
    bits: options.BitsName

    @property
    def name(self) -> str:
        """How results call it."""
        return f"{self.shape} (random weights)"


@dataclass(frozen=True, slots=True)
class _Lengths:
    """The lengths that the user gave; None leaves one to the model."""

    prefill: int | None
    decode: int | None
    repetitions: int | None
    clients: tuple[int, ...]

    def settings(self, prompt: tuple[int, ...], threads: int | None) -> BenchSettings:
        """Return the settings on this machine's processor."""
        from baichuan2_tpu.bench import BenchSettings, available_threads

        return BenchSettings(
            prompt=prompt,
            prefill_tokens=self.prefill or 512,
            decode_tokens=self.decode or 32,
            repetitions=self.repetitions or 3,
            threads=threads or available_threads(),
            clients=self.clients,
        )

    def bundle_settings(
        self, prompt: tuple[int, ...], lengths: tuple[int, ...], *, is_simulated: bool
    ) -> BundleBenchSettings:
        """Return the settings for a bundle; the simulator takes seconds per token and is not warmed up."""
        from baichuan2_tpu.bench import BundleBenchSettings

        usual_lengths = () if is_simulated else lengths
        return BundleBenchSettings(
            prompt=prompt,
            lengths=usual_lengths if self.prefill is None else (self.prefill,),
            decode_tokens=self.decode or (2 if is_simulated else 32),
            warmups=0 if is_simulated else 1,
            repetitions=self.repetitions or (1 if is_simulated else 3),
            clients=self.clients,
        )


def _parse_clients(text: str | None) -> tuple[int, ...]:
    if text is None:
        return ()
    words = [word.strip() for word in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d{0,3}", word) for word in words):
        raise typer.BadParameter(f"--clients is {text!r}, allowed are numbers from 1 such as 1,4,16,32")
    return tuple(int(word) for word in words)


def _bench_model(files: ModelFiles, lengths: _Lengths, opening: EngineSettings) -> BenchReport | BundleReport:
    """Measure a model; opening its engine is part of what is measured."""
    from baichuan2_tpu.bench import run_bench

    if files.located.kind == "bundle":
        return _bench_bundle(files, lengths, opening)
    prompt = _prompt_ids(files, files.read_config().max_context)
    if files.located.kind == "bmodel":
        return _bench_bmodel(files, prompt, lengths, opening)
    settings = lengths.settings(prompt, opening.threads)
    return run_bench(_engine_opener(files, opening), settings, model=files.name, on_step=notice)


def _bench_bundle(files: ModelFiles, lengths: _Lengths, opening: EngineSettings) -> BundleReport:
    from baichuan2_tpu.bench import prompt_lengths, run_bundle_bench
    from baichuan2_tpu.manifest import Manifest

    manifest = Manifest.read(files.located.path)
    context = manifest.checked_context(opening.context)
    settings = lengths.bundle_settings(
        _prompt_ids(files, context), prompt_lengths(context), is_simulated=opening.engine == "simulator"
    )
    return run_bundle_bench(
        _engine_opener(files, opening), settings, model=files.name, manifest=manifest, on_step=notice
    )


def _bench_bmodel(
    files: ModelFiles, prompt: tuple[int, ...], lengths: _Lengths, opening: EngineSettings
) -> BundleReport:
    """Measure a bmodel without a manifest: after the vendor's prompt alone, as the vendor does."""
    from baichuan2_tpu.bench import run_bundle_bench

    settings = lengths.bundle_settings(prompt, (), is_simulated=opening.engine == "simulator")
    return run_bundle_bench(
        _engine_opener(files, opening), settings, model=files.name, manifest=None, on_step=notice
    )


def _engine_opener(files: ModelFiles, opening: EngineSettings) -> Callable[[], Engine]:
    """Return what opens the engine; the bench closes it."""
    return lambda: open_model(files, opening).engine


def _prompt_ids(files: ModelFiles, budget: int) -> tuple[int, ...]:
    """Return the vendor's prompt as this model wants it written."""
    from baichuan2_tpu.bench import VENDOR_PROMPT
    from baichuan2_tpu.text.messages import Message

    return files.require_template().render([Message("user", VENDOR_PROMPT)], budget).ids


def _bench_shape(source: _RandomModel, lengths: _Lengths, opening: EngineSettings) -> BenchReport:
    from baichuan2_tpu.bench import run_bench, vendor_prompt_ids

    config, open_engine = _shape_opener(source, opening)
    settings = lengths.settings(vendor_prompt_ids(config), opening.threads)
    return run_bench(open_engine, settings, model=source.name, on_step=notice)


def _shape_opener(source: _RandomModel, opening: EngineSettings) -> tuple[ModelConfig, Callable[[], Engine]]:
    """Make random weights before the clock runs; the load time is then the engine's own."""
    from baichuan2_tpu.checkpoint.random_weights import RandomWeights
    from baichuan2_tpu.engine.cpu import CpuEngine
    from baichuan2_tpu.memory import fit_context
    from baichuan2_tpu.shapes import shape_config

    if opening.engine not in ("auto", "cpu"):
        raise typer.BadParameter("--shape runs only on the cpu engine")
    config = shape_config(source.shape, source.bits.bits)
    fit_context(config, opening.context, notice)
    weights = RandomWeights(config)
    return config, lambda: CpuEngine(
        weights, context=opening.context, threads=opening.threads, is_exact=opening.is_exact
    )


def _profile(source: _RandomModel | ModelFiles, lengths: _Lengths, opening: EngineSettings) -> ProfileReport:
    """Measure where the time of a token goes; --prefill and --decode set the lengths."""
    from baichuan2_tpu.bench import ProfileSettings, available_threads, run_profile

    is_random = isinstance(source, _RandomModel)
    open_engine = _shape_opener(source, opening)[1] if is_random else _engine_opener(source, opening)
    settings = ProfileSettings(
        prompt_tokens=lengths.prefill or 512,
        decode_tokens=lengths.decode or 16,
        threads=opening.threads or available_threads(),
    )
    return run_profile(open_engine, settings, model=source.name, on_step=notice)


def _show_profile(report: ProfileReport, picture: Path | None, *, as_json: bool) -> None:
    """Print the tables and one JSON object, or the object alone; draw where a file is named."""
    if picture is not None:
        picture.write_text(report.draw(), "utf-8")
        notice(f"[picture: {picture}]")
    if not as_json:
        write_result("\n".join(report.lines()) + "\n\n")
    write_result(json.dumps(report.to_json(), ensure_ascii=False) + "\n")


def _show(report: BenchReport | BundleReport, *, as_json: bool) -> None:
    """Print the figures, the performance table and one JSON object, or the object alone."""
    from baichuan2_tpu.bench import clients_table, performance_table

    if not as_json:
        rows = report.rows()
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        for name, figure, ceiling in rows:
            write_result(f"{name:<{widths[0]}}  {figure:<{widths[1]}}  {ceiling}".rstrip() + "\n")
        tables = [clients_table(report.clients)] if report.clients else []
        for table in (*tables, performance_table([report.performance])):
            write_result("\n" + "\n".join(table) + "\n")
        write_result("\n")
    write_result(json.dumps(report.to_json(), ensure_ascii=False) + "\n")
