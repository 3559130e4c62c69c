"""Compile one real-size layer through the vendor's own ONNX route: time, memory, and the cycle model.

It runs the programs that the vendor's gen_bmodel.sh runs, in the environment that the tests make
(BAICHUAN2_TEST_TOOLCHAIN=1, ``tests/models/vendor_bmodel.py``), on graphs like those that the vendor's export
gives (``tests/models/vendor_graphs.py``). Weights are random, which changes neither time nor memory.
Not here: exporting from torch, which the vendor does before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from baichuan2_tpu.compile.cycle_profile import PROFILE_NAME, read_cost
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.fetch import cache_folder
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.shapes import SHAPES

GRAPHS = Path(__file__).resolve().parents[1] / "tests" / "models" / "vendor_graphs.py"
CONTEXT = 512
VOCABULARY = 64  # graphs of an embedding and a head are written too, but not compiled
WEIGHT_DEVIATION = 0.02
QUANTIZE = {4: ("--quantize", "W4BF16", "--q_group_size", "64"), 8: ("--quantize", "W8F16")}
KV_OUTPUTS = ("--quant_output", "--quant_output_list", "2,3")
KV_INPUTS = ("--quant_input", "--quant_input_list", "4,5")


@dataclass(frozen=True, slots=True)
class Step:
    """What one program took, with the memory of its children."""

    program: str
    net: str
    time_s: float
    peak_rss_bytes: int


@dataclass(frozen=True, slots=True)
class Result:
    """What compiling a net took, and the time of a launch by the cycle model."""

    net: str
    steps: tuple[Step, ...]
    launch_ms: float


def main() -> None:
    """Compile both nets of a layer, print a Markdown table and, with --json, one line of JSON last."""
    arguments = parse_arguments()
    route = arguments.route or find_route()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        folder = Path(scratch)
        write_weights(folder, SHAPES["baichuan2-7b"])
        run(route, folder, "python", str(GRAPHS), ".")
        results = list(compile_layer(route, folder, arguments.bits))
    print("\n".join(table(results)))
    if arguments.json:
        print(json.dumps([asdict(result) for result in results]))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Compile one layer of the 7B through the vendor's route.")
    parser.add_argument("--bits", type=int, choices=tuple(QUANTIZE), default=4)
    parser.add_argument("--route", type=Path, help="the environment of the vendor's programs")
    parser.add_argument("--scratch", type=Path, help="folder for 6 GB of temporary files")
    parser.add_argument("--json", action="store_true", help="print one line of JSON last")
    return parser.parse_args()


def find_route() -> Path:
    """Return the environment that the tests have made."""
    routes = [mark.parent for mark in (cache_folder() / "test-tools").glob("vendor-route-*/whole")]
    if not routes:
        sys.exit(
            "there is no environment with the vendor's programs; benchmarks/README.md says how to make it"
        )
    return max(routes, key=lambda route: route.stat().st_mtime)


def write_weights(folder: Path, config: ModelConfig) -> None:
    """Write one layer, and a tiny embedding and head, which the graphs need."""
    shape = {
        "heads": config.heads,
        "hidden_size": config.hidden_size,
        "context": CONTEXT,
        "layers": 1,
        "norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
    }
    (folder / "shape.json").write_text(json.dumps(shape), "utf-8")
    random, hidden, inner = np.random.default_rng(0), config.hidden_size, config.intermediate_size
    prefix = "model.layers.0"
    sizes = {f"{prefix}.self_attn.{letter}_proj": (hidden, hidden) for letter in "qkvo"}
    sizes |= {f"{prefix}.mlp.{part}_proj": (inner, hidden) for part in ("gate", "up")}
    sizes |= {f"{prefix}.mlp.down_proj": (hidden, inner)}
    sizes |= dict.fromkeys(("model.embed_tokens", "lm_head"), (VOCABULARY, hidden))
    norms = (f"{prefix}.input_layernorm", f"{prefix}.post_attention_layernorm", "model.norm")
    weights = {f"{name}.weight": np.ones(hidden, np.float32) for name in norms}
    for name, size in sizes.items():
        weights[f"{name}.weight"] = random.standard_normal(size, np.float32) * np.float32(WEIGHT_DEVIATION)
    np.savez(folder / "weights.npz", **weights)  # pyright: ignore[reportArgumentType] - no name is its parameter


def compile_layer(route: Path, folder: Path, bits: int) -> Iterator[Result]:
    """Yield the net for a prompt, and the net for a token after it."""
    for net, tokens, history, options in (
        ("block_0", CONTEXT, 0, KV_OUTPUTS),
        ("block_cache_0", 1, CONTEXT, (*KV_INPUTS, *KV_OUTPUTS)),
    ):
        names = ("--model_name", net, "--model_def", f"{net}.onnx", "--mlir", f"{net}.mlir")
        files = ("--mlir", f"{net}.mlir", "--chip", "bm1684x", "--model", f"{net}.bmodel")
        steps = (
            run(route, folder, "model_transform.py", *names, net=net),
            run(route, folder, "model_deploy.py", *files, *QUANTIZE[bits], *options, net=net),
        )
        cost = read_cost(folder / PROFILE_NAME, net=net, stage=Stage(tokens, history))
        for file in folder.glob(f"{net}*.*"):
            file.unlink()
        yield Result(net, steps, cost.time_ms)


def run(route: Path, folder: Path, program: str, *arguments: str, net: str = "") -> Step:
    """Run one of the route's programs; return its time and the largest memory of any of its processes."""
    environment = {"PATH": os.pathsep.join([str(route / "bin"), "/usr/bin", "/bin"]), "HOME": str(route)}
    command = [str(route / "bin" / program), *arguments]
    started = time.perf_counter()
    with (folder / "log").open("wb") as log:
        child = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    step = Step(program, net, time.perf_counter() - started, usage.ru_maxrss * 1024)
    print(f"{net} {program}: {step.time_s:.0f} s, {step.peak_rss_bytes / 1e9:.1f} GB", file=sys.stderr)
    if child.returncode != 0:
        sys.exit((folder / "log").read_text("utf-8", "replace")[-2000:])
    return step


def table(results: list[Result]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| net | program | time | peak memory | launch by the cycle model |"
    yield "|---|---|---|---|---|"
    for result in results:
        for step in result.steps:
            is_last = step is result.steps[-1]
            launch = f"{result.launch_ms:.2f} ms" if is_last else ""
            memory = f"{step.peak_rss_bytes / 1e9:.1f} GB"
            yield f"| {result.net} | {step.program} | {step.time_s:.0f} s | {memory} | {launch} |"


if __name__ == "__main__":
    main()
