"""Compile one real-size layer and the heads in all their stages, and estimate the whole model from them.

The figures are those of the compiler's cycle model: an estimate, never a measurement. Weights are random,
which changes no time. A layer costs what every other one does, so one is compiled and counted as often as the
model has layers; four of them in one net take 0.1 % less than four nets. ``--shape`` takes another model.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.compile.cycle_profile import PROFILE_NAME, read_cost
from baichuan2_tpu.compile.net_weights import Arrays, block_weights, head_weights
from baichuan2_tpu.compile.nets import Net, block_net, head_net
from baichuan2_tpu.compile.settings import CompileSettings, default_stages
from baichuan2_tpu.compile.tpuc import Addresses, Compiler
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.estimate import USERS, Estimate, draw, estimate
from baichuan2_tpu.manifest import HeadKind, Manifest, NetCost
from baichuan2_tpu.shapes import SHAPES, shape_config
from baichuan2_tpu.toolchain import find_toolchain
from vendor_form import vendor_block

SHAPE = "baichuan2-7b"
"""Of the goals, the picture and the vendor's form."""

CONTEXT = 4096
LAYERS_PER_NET = 4
VENDOR_CONTEXT = 512
PROMPTS = (14, 64, 128, 256, 512)
VENDOR_HEAD: HeadKind = "f16"


@dataclass(frozen=True, slots=True)
class Build:
    """What is compiled: bits and group of the layers, form of the head, and the model's dimensions."""

    bits: Literal[4, 8]
    group_size: int
    head: HeadKind
    shape: str = SHAPE

    @property
    def name(self) -> str:
        """The build in words."""
        return f"{self.bits} bits, groups of {self.group_size}, {self.head[1:]}-bit head"

    def config(self) -> ModelConfig:
        """Return the dimensions, quantised in this way."""
        base = shape_config(self.shape, self.bits)
        assert base.quantization is not None
        head_bits: Literal[4, 8] = 4 if self.head == "w4" else 8
        quantization = replace(base.quantization, group_size=self.group_size, head_bits=head_bits)
        return replace(base, quantization=quantization)


BUILDS = (
    Build(4, 64, "w8"),
    Build(4, 64, "w4"),
    Build(4, 128, "w8"),
    Build(4, 128, "w4"),
    Build(8, 64, "w8"),
)

DRAWN = Build(4, 64, "w4")


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure that was set as a goal. Units: ``most`` and what is reached are those of ``unit``."""

    title: str
    most: float
    reached: float
    unit: str


@dataclass(frozen=True, slots=True)
class Vendor:
    """The estimate of the vendor's build of one width."""

    bits: int
    token_ms: float
    prompt_ms: float


@dataclass(frozen=True, slots=True)
class Bench:
    """A compiler, and an empty folder that it works in."""

    compiler: Compiler
    folder: Path

    def costs(self, arrays: Arrays, nets: Sequence[Net]) -> list[NetCost]:
        """Compile nets that share weights one after the other; stages of one net share their memory."""
        named: dict[str, Any] = dict(arrays)
        np.savez(self.folder / "weights.npz", **named)
        return [self._cost(net, number) for number, net in enumerate(nets)]

    def _cost(self, net: Net, number: int) -> NetCost:
        started = time.perf_counter()
        addresses: Addresses | None = ("use" if number else "save") if net.has_own_io else None
        with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
            self.compiler.compile(net, Path(scratch), addresses)
            path = Path(scratch) / PROFILE_NAME
            cost = read_cost(path, net=net.name, stage=net.stage)
        took = time.perf_counter() - started
        print(
            f"{net.name} {net.mode} T={net.stage.tokens} S={net.stage.history}: {took:.1f} s", file=sys.stderr
        )
        return cost


def main() -> None:
    """Compile, print Markdown tables and, if asked, one JSON object as the last line."""
    arguments = parse_arguments()
    builds = [replace(build, shape=arguments.shape) for build in BUILDS if build.bits in arguments.bits]
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        bench = Bench(Compiler(find_toolchain(arguments.toolchain), Path(scratch)), Path(scratch) / "nets")
        bench.folder.mkdir()
        results = dict(measure(bench, builds))
        vendors = [vendor_estimate(bench, bits) for bits in arguments.bits if arguments.shape == SHAPE]
    print("\n".join(build_table(results)))
    if vendors:
        print("\n".join(["", *vendor_table(vendors)]))
    for build, figures in results.items():
        print("\n".join(["", f"{build.name}: ms per step (tok/s)", "", *users_table(figures)]))
    if listed := goals(results):
        print("\n".join(["", *goal_table(listed)]))
    if arguments.picture and DRAWN in results:
        arguments.picture.write_text(draw(results[DRAWN], title=f"{SHAPE}, {DRAWN.name}"), "utf-8")
    if arguments.json:
        print(json.dumps({build.name: result_json(figures) for build, figures in results.items()}))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Estimate builds of the 7B from one real layer and the heads."
    )
    parser.add_argument("--shape", choices=[*SHAPES], default=SHAPE, help=f"another model than {SHAPE}")
    parser.add_argument("--bits", type=int, nargs="+", choices=(4, 8), default=[4, 8])
    parser.add_argument("--toolchain", type=Path, help="where TPU-MLIR is installed")
    parser.add_argument("--scratch", type=Path, help="folder for some gigabytes, which are removed")
    parser.add_argument("--picture", type=Path, help="SVG to draw, of 4 bits with a 4-bit head")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    return parser.parse_args()


def measure(bench: Bench, builds: Sequence[Build]) -> Iterator[tuple[Build, Estimate]]:
    """Yield the estimates of builds; layers and heads that several of them have are compiled once."""
    layers: dict[tuple[int, int], list[NetCost]] = {}
    heads: dict[tuple[int, str], list[NetCost]] = {}
    for build in builds:
        layer, head = (build.bits, build.group_size), (build.group_size, build.head)
        if layer not in layers:
            layers[layer] = layer_costs(bench, build)
        if head not in heads:
            heads[head] = head_costs(bench, build)
        yield build, whole_model(build, [*layers[layer], *heads[head]])


def settings_for(build: Build) -> CompileSettings:
    """Return the settings of a compile that asks for nothing but a long context."""
    settings = CompileSettings(
        bits=build.bits,
        head=build.head,
        context=CONTEXT,
        rows=CONTEXT,
        stages=default_stages(CONTEXT, CONTEXT),
        layers_per_net=1,
    )
    settings.check(build.config())
    return settings


def layer_costs(bench: Bench, build: Build) -> list[NetCost]:
    """Compile a layer in all stages, the largest first."""
    config, settings = build.config(), settings_for(build)
    nets = [block_net(config, settings, 0, stage) for stage in reversed(settings.stages)]
    return bench.costs(block_weights(RandomWeights(config), settings, 0), nets)


def head_costs(bench: Bench, build: Build) -> list[NetCost]:
    """Compile the head in all stages."""
    config, settings = build.config(), settings_for(build)
    nets = [head_net(config, settings, rows) for rows in settings.head_rows]
    return bench.costs(head_weights(RandomWeights(config), settings), nets)


def whole_model(build: Build, costs: Sequence[NetCost]) -> Estimate:
    """Estimate the whole model with the package's own sums; every layer costs what the first one does."""
    config, settings = build.config(), settings_for(build)
    manifest = Manifest(
        model=config,
        bits=settings.bits,
        head=settings.head,
        head_output=settings.head_output,
        embedding=settings.embedding,
        dtype=settings.dtype,
        context=settings.context,
        rows=settings.rows,
        stages=settings.stages,
        head_rows=settings.head_rows,
        layers_per_net=LAYERS_PER_NET,
        group_size=build.group_size,
        devices=1,
        chip="bm1684x",
        bmodel="",
        device_bytes=0,
        source=f"{build.shape}, random weights",
        tools={},
        costs=(),
        files={},
    )
    nets = [
        replace(
            cost,
            net=net,
            time_ms=cost.time_ms * LAYERS_PER_NET,
            read_bytes=cost.read_bytes * LAYERS_PER_NET,
            flops=cost.flops * LAYERS_PER_NET,
        )
        for net in manifest.block_nets
        for cost in costs
        if cost.net == "block_cache_0"
    ]
    heads = [cost for cost in costs if cost.net == "lm_head"]
    return estimate(replace(manifest, costs=(*nets, *heads)), PROMPTS)


def vendor_estimate(bench: Bench, bits: Literal[4, 8]) -> Vendor:
    """Estimate the vendor's build, which computes every position whatever the prompt's length."""
    build = Build(bits, 64, "w8")
    config, settings = build.config(), replace(settings_for(build), context=VENDOR_CONTEXT)
    arrays = vendor_arrays(block_weights(RandomWeights(config), settings, 0))
    nets = [vendor_block(config, bits, VENDOR_CONTEXT, has_history=is_decode) for is_decode in (False, True)]
    prompt, token = bench.costs(arrays, nets)
    float_head = replace(settings, head=VENDOR_HEAD, head_output="token")
    (head,) = bench.costs(head_weights(RandomWeights(config), float_head), [head_net(config, float_head)])
    token_ms, prompt_ms = (config.layers * cost.time_ms + head.time_ms for cost in (token, prompt))
    return Vendor(bits, token_ms, prompt_ms)


def vendor_arrays(arrays: Arrays) -> Arrays:
    """Return the arrays of a net's only layer under the names without its number."""
    return {name.removeprefix("0."): values for name, values in arrays.items()}


def goals(results: dict[Build, Estimate]) -> list[Goal]:
    """Return what was to be reached, beside what the builds reach; goals of other builds are left out."""
    listed: list[Goal] = []
    if figures := results.get(Build(4, 64, "w8")):
        listed.append(Goal("one user, 8-bit head, up to 512 rows", 84, step_ms(figures, 1, 512), "ms"))
        listed.append(Goal("launches per token, one user", 9, figures.decode.total.launches, ""))
    if figures := results.get(Build(4, 128, "w4")):
        title = "one user, 4-bit head, groups of 128, up to 128 rows"
        listed.append(Goal(title, 72, step_ms(figures, 1, 128), "ms"))
    if figures := results.get(Build(4, 64, "w4")):
        listed.append(Goal("16 users, 4-bit head, 2048 rows", 105, step_ms(figures, 16, 2048), "ms"))
        listed.append(Goal("32 users, 4-bit head, 2048 rows", 108, step_ms(figures, 32, 2048), "ms"))
        beside = figures.loaded[16, 2048].total.time_ms / step_ms(figures, 16, 2048)
        listed.append(Goal("a prompt of 48 beside 16 answers, 2048 rows", 1.2, beside, "x"))
    return listed


def step_ms(figures: Estimate, users: int, rows: int) -> float:
    """Return the time of one token for each user."""
    return figures.answers[users, rows].total.time_ms


def build_table(results: dict[Build, Estimate]) -> list[str]:
    """Return the lines of a Markdown table: one user, by rows in use, and first tokens."""
    histories = next(iter(results.values())).histories
    columns = [f"{rows} rows" for rows in histories] + [f"first token of {tokens}" for tokens in PROMPTS]
    lines = markdown_head(["build", *columns])
    for build, figures in results.items():
        times = [step_ms(figures, 1, rows) for rows in histories]
        prompts = [step.total.time_ms for step in figures.first_tokens.values()]
        lines.append(
            markdown_row([build.name, *(f"{ms:.1f} ms" for ms in times), *(f"{ms:.0f} ms" for ms in prompts)])
        )
    return lines


def vendor_table(vendors: Sequence[Vendor]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = markdown_head(["vendor's form", "a token", "any prompt"])
    for vendor in vendors:
        lines.append(
            markdown_row([f"{vendor.bits} bits", f"{vendor.token_ms:.1f} ms", f"{vendor.prompt_ms:.0f} ms"])
        )
    return lines


def users_table(figures: Estimate) -> list[str]:
    """Return the lines of a Markdown table: steps by users and rows in use."""
    lines = markdown_head(["rows in use", *(str(users) for users in USERS)])
    for rows in figures.histories:
        times = [(users, step_ms(figures, users, rows)) for users in USERS]
        lines.append(
            markdown_row([str(rows), *(f"{ms:.1f} ({1000 * users / ms:.0f})" for users, ms in times)])
        )
    return lines


def goal_table(listed: Sequence[Goal]) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = markdown_head(["goal", "at most", "reached"])
    for goal in listed:
        unit = f" {goal.unit}".rstrip()
        digits = 2 if goal.unit == "x" else 1 if goal.unit else 0
        verdict = "" if goal.reached <= goal.most else " (missed)"
        lines.append(
            markdown_row([goal.title, f"{goal.most:g}{unit}", f"{goal.reached:.{digits}f}{unit}{verdict}"])
        )
    return lines


def markdown_head(columns: Sequence[str]) -> list[str]:
    """Return the first two lines of a table."""
    return [markdown_row(columns), "|---" * len(columns) + "|"]


def markdown_row(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return f"| {' | '.join(cells)} |"


def result_json(figures: Estimate) -> dict[str, object]:
    """Return an estimate under names that say their units."""
    return {
        "step_ms": {
            f"{users} users, {rows} rows": step_ms(figures, users, rows) for users, rows in figures.answers
        },
        "first_token_ms": {str(tokens): step.total.time_ms for tokens, step in figures.first_tokens.items()},
        "launches": figures.decode.total.launches,
    }


if __name__ == "__main__":
    main()
