"""Compile one real-size layer and the head in several forms, and estimate the whole model from them.

The figures are those of the compiler's cycle model: an estimate, never a measurement. Weights are random,
which changes no time. A layer costs what every other one does, so one is compiled and counted 32 times.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.compile.cycle_profile import PROFILE_NAME, read_cost
from baichuan2_tpu.compile.net_weights import Arrays, block_weights, head_weights
from baichuan2_tpu.compile.nets import Net, block_net, head_net
from baichuan2_tpu.compile.settings import CompileSettings, default_prefill
from baichuan2_tpu.compile.tpuc import Addresses, Compiler
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.estimate import estimate
from baichuan2_tpu.manifest import HeadKind, Manifest, NetCost
from baichuan2_tpu.shapes import shape_config
from baichuan2_tpu.toolchain import find_toolchain
from vendor_form import vendor_block

SHAPE = "baichuan2-7b"
VENDOR_CONTEXT = 512
PROMPTS = (14, 64, 128, 256, 512)
OUR_HEADS: tuple[HeadKind, ...] = ("w8", "w4")
VENDOR_HEAD: HeadKind = "f16"

Heads = Mapping[str, NetCost]


@dataclass(frozen=True, slots=True)
class Row:
    """The estimate of one build of the whole model."""

    build: str
    bits: int
    context: int
    head: str
    layer_ms: float
    head_ms: float
    decode_ms: float
    first_token_ms: dict[int, float]


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
            cost = read_cost(path, net=net.name, tokens=net.tokens, history=net.history)
        took = time.perf_counter() - started
        print(f"{net.name} {net.mode} T={net.tokens} S={net.history}: {took:.1f} s", file=sys.stderr)
        return cost


def main() -> None:
    """Compile, print a Markdown table and, if asked, one JSON object as the last line."""
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        bench = Bench(Compiler(find_toolchain(arguments.toolchain), Path(scratch)), Path(scratch) / "nets")
        bench.folder.mkdir()
        heads = {kind: head_cost(bench, kind) for kind in (*OUR_HEADS, VENDOR_HEAD)}
        rows = [row for bits in arguments.bits for row in measure(bench, bits, arguments.context, heads)]
    print("\n".join(table(rows)))
    if arguments.json:
        print(json.dumps([row_json(row) for row in rows]))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Estimate builds of the 7B from one real layer and the head."
    )
    parser.add_argument("--bits", type=int, nargs="+", choices=(4, 8), default=[4, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--toolchain", type=Path, help="where TPU-MLIR is installed")
    parser.add_argument("--scratch", type=Path, help="folder for some gigabytes, which are removed")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    return parser.parse_args()


def measure(bench: Bench, bits: Literal[4, 8], contexts: Sequence[int], heads: Heads) -> Iterator[Row]:
    """Yield our builds of one width of the blocks, then the vendor's."""
    config = shape_config(SHAPE, bits)
    weights = RandomWeights(config)
    for context in contexts:
        settings = settings_for(config, context, "w8")
        nets = [block_net(config, settings, 0, tokens) for tokens in reversed(settings.stages)]
        costs = bench.costs(block_weights(weights, settings, 0), nets)
        for kind in OUR_HEADS:
            yield our_row(with_head(config, kind), replace(settings, head=kind), [*costs, heads[kind]])
    if VENDOR_CONTEXT in contexts:
        arrays = block_weights(weights, settings_for(config, VENDOR_CONTEXT, "w8"), 0)
        yield vendor_row(bench, arrays, config, heads[VENDOR_HEAD])


def head_cost(bench: Bench, kind: HeadKind) -> NetCost:
    """Compile a head that gives logits, or the vendor's, of floats, that gives a token."""
    config = with_head(shape_config(SHAPE, 4), kind)
    settings = settings_for(config, VENDOR_CONTEXT, kind)
    if kind == VENDOR_HEAD:
        settings = replace(settings, head_output="token")
    return bench.costs(head_weights(RandomWeights(config), settings), [head_net(config, settings)])[0]


def with_head(base: ModelConfig, kind: HeadKind) -> ModelConfig:
    """Return the dimensions with a head of 4 bits where one is asked for, else of 8."""
    assert base.quantization is not None
    return replace(base, quantization=replace(base.quantization, head_bits=4 if kind == "w4" else 8))


def settings_for(config: ModelConfig, context: int, head: HeadKind) -> CompileSettings:
    """Return the settings of a compile that asks for nothing else."""
    assert config.quantization is not None
    settings = CompileSettings(
        bits=config.quantization.bits, head=head, context=context, prefill=default_prefill(context)
    )
    settings.check(config)
    return settings


def our_row(config: ModelConfig, settings: CompileSettings, costs: Sequence[NetCost]) -> Row:
    """Estimate the whole model with the package's own sums; every layer costs what the first one does."""
    layers = [
        replace(cost, net=f"block_cache_{layer}")
        for layer in range(config.layers)
        for cost in costs
        if cost.net == "block_cache_0"
    ]
    manifest = Manifest(
        model=config,
        bits=settings.bits,
        head=settings.head,
        head_output=settings.head_output,
        embedding=settings.embedding,
        dtype=settings.dtype,
        context=settings.context,
        prefill=settings.prefill,
        devices=1,
        chip="bm1684x",
        bmodel="",
        device_bytes=0,
        source=f"{SHAPE}, random weights",
        tools={},
        costs=(*layers, costs[-1]),
        files={},
    )
    found = estimate(manifest, PROMPTS)
    return Row(
        build="ours",
        bits=settings.bits,
        context=settings.context,
        head=settings.head,
        layer_ms=found.decode.layers.time_ms / config.layers,
        head_ms=found.decode.head.time_ms,
        decode_ms=found.decode.total.time_ms,
        first_token_ms={length: step.total.time_ms for length, step in found.first_tokens.items()},
    )


def vendor_row(bench: Bench, arrays: Arrays, config: ModelConfig, head: NetCost) -> Row:
    """Estimate the vendor's build, which computes every position whatever the prompt's length."""
    assert config.quantization is not None
    bits = config.quantization.bits
    nets = [vendor_block(config, bits, VENDOR_CONTEXT, has_history=is_decode) for is_decode in (False, True)]
    prompt, token = bench.costs(arrays, nets)
    first_token_ms = config.layers * prompt.time_ms + head.time_ms
    return Row(
        build="vendor's form",
        bits=bits,
        context=VENDOR_CONTEXT,
        head="f16, token",
        layer_ms=token.time_ms,
        head_ms=head.time_ms,
        decode_ms=config.layers * token.time_ms + head.time_ms,
        first_token_ms=dict.fromkeys(PROMPTS, first_token_ms),
    )


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    prompts = " | ".join(f"first token of {length}" for length in PROMPTS)
    lines = [f"| build | bits | context | head | layer | head | a token | tok/s | {prompts} |"]
    lines.append("|---" * (8 + len(PROMPTS)) + "|")
    for row in rows:
        first = " | ".join(f"{time_ms:.0f} ms" for time_ms in row.first_token_ms.values())
        lines.append(
            f"| {row.build} | {row.bits} | {row.context} | {row.head} | {row.layer_ms:.2f} ms | "
            f"{row.head_ms:.2f} ms | {row.decode_ms:.1f} ms | {1000 / row.decode_ms:.2f} | {first} |"
        )
    return lines


def row_json(row: Row) -> dict[str, object]:
    """Return a row under names that say their units."""
    return {
        "build": row.build,
        "bits": row.bits,
        "context": row.context,
        "head": row.head,
        "layer_ms": row.layer_ms,
        "head_ms": row.head_ms,
        "decode_ms": row.decode_ms,
        "first_token_ms": {str(length): time_ms for length, time_ms in row.first_token_ms.items()},
    }


if __name__ == "__main__":
    main()
