"""Measure what compiling takes: time, memory of the whole process tree, disk, on layers of the real size.

    python benchmarks/compile_cost.py --bits 4 --layers 8

writes a checkpoint of a few layers with random weights, the whole head and the whole embedding, compiles it
with the options of ``baichuan2 compile``, and prints what was measured and what that makes for all layers of
the shape. Time grows by the layers' share; memory does not grow; disk grows by each layer's bytes. So that
all nets are of the same size, the layers are a multiple of twice those in one net.
Source of the shapes: ``checkpoint.random_weights``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from baichuan2_tpu.checkpoint.layout import HEAD, layer_linears, layer_norms
from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.shapes import SHAPES, shape_config

SAMPLES_PER_SECOND = 20
GIGABYTE = 1e9
COMMAND = "from baichuan2_tpu.cli import main; main()"


def write_checkpoint(directory: Path, weights: RandomWeights) -> None:
    """Write random weights as a quantised checkpoint: one file per layer, as quantize does."""
    directory.mkdir(parents=True)
    config = weights.config
    (directory / "config.json").write_text(json.dumps(config.to_json()))
    parts: list[tuple[list[str], list[str]]] = [([], ["model.embed_tokens"]), ([HEAD], ["model.norm"])]
    parts += [([*layer_linears(config, layer)], [*layer_norms(layer)]) for layer in range(config.layers)]
    weight_map: dict[str, str] = {}
    for number, (linears, arrays) in enumerate(parts):
        tensors: dict[str, np.ndarray] = {f"{name}.weight": weights.array(name) for name in arrays}
        for name in linears:
            linear = weights.linear(name)
            # Each layer gets integers of its own: equal ones would be stored once.
            own = np.int32(number * 0x01010101)
            tensors[f"{name}.qweight"] = linear.qweight ^ own
            tensors[f"{name}.qzeros"], tensors[f"{name}.scales"] = linear.qzeros, linear.scales
        file = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        save_file(tensors, directory / file)
        weight_map |= dict.fromkeys(tensors, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


class Watch:
    """The most memory of a process and all its descendants, and the most disk of a folder, while it runs."""

    def __init__(self, process: int, folders: list[Path]) -> None:
        self.memory_bytes = 0
        self.disk_bytes = 0
        self._process = process
        self._folders = folders
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Take no more samples."""
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(1 / SAMPLES_PER_SECOND):
            self.memory_bytes = max(self.memory_bytes, sum(map(private_bytes, descendants(self._process))))
            self.disk_bytes = max(self.disk_bytes, sum(map(folder_bytes, self._folders)))


def descendants(process: int) -> list[int]:
    """Return a process and all below it."""
    processes = [process]
    for parent in processes:
        for task in Path(f"/proc/{parent}/task").glob("*"):
            with suppress(OSError):  # it ended meanwhile
                processes += [int(child) for child in (task / "children").read_text().split()]
    return processes


def private_bytes(process: int) -> int:
    """Return the resident memory of a process, without pages of files it only maps."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    values = dict(line.split(":", 1) for line in lines)
    return sum(int(values.get(key, "0 kB").split()[0]) * 1024 for key in ("RssAnon", "RssShmem"))


def folder_bytes(folder: Path) -> int:
    """Return the disk that a folder takes; holes in files take none."""
    total = 0
    for root, _, names in os.walk(folder):  # it passes over folders that are removed meanwhile
        for name in names:
            with suppress(OSError):
                total += Path(root, name).lstat().st_blocks * 512
    return total


def measure(arguments: argparse.Namespace, work: Path) -> dict[str, float]:
    """Compile once, watched."""
    checkpoint, out = work / "checkpoint", work / "bundle"
    command = [sys.executable, "-c", COMMAND, "compile", str(checkpoint), str(out)]
    command += ["--context", str(arguments.context), "--jobs", str(arguments.jobs)]
    command += ["--layers-per-net", str(arguments.layers_per_net), *arguments.option]
    began, used = time.perf_counter(), os.times()
    process = subprocess.Popen(command)
    watch = Watch(process.pid, [out.with_name("bundle.partial"), out])
    code = process.wait()
    watch.stop()
    seconds, after = time.perf_counter() - began, os.times()
    if code != 0:
        raise SystemExit(code)
    used_s = sum(after[2:4]) - sum(used[2:4])
    return {
        "time_s": seconds,
        "processor_s": used_s,
        "memory_bytes": watch.memory_bytes,
        "disk_bytes": watch.disk_bytes,
        "bundle_bytes": folder_bytes(out),
    }


def extrapolate(
    few: dict[str, float], more: dict[str, float], layers: tuple[int, int, int]
) -> dict[str, float]:
    """Draw the line through two builds on to all layers.

    Memory, and disk beyond the bundle, do not depend on the layers: the larger of the two counts.
    """
    first, second, all_layers = layers
    line = {
        name: more[name] + (more[name] - few[name]) / (second - first) * (all_layers - second) for name in few
    }
    extra_bytes = max(build["disk_bytes"] - build["bundle_bytes"] for build in (few, more))
    line["memory_bytes"] = max(few["memory_bytes"], more["memory_bytes"])
    line["disk_bytes"] = line["bundle_bytes"] + extra_bytes
    return line


def show(title: str, figures: dict[str, float]) -> None:
    """Print one line."""
    values = [
        f"{figures['time_s']:7.1f} s",
        f"{figures['processor_s']:7.1f} s of processors",
        *(
            f"{figures[name] / GIGABYTE:6.2f} GB {name.removesuffix('_bytes')}"
            for name in figures
            if "bytes" in name
        ),
    ]
    print(f"{title:<28}" + ", ".join(values))


def main() -> None:
    """Measure two builds and print both and the line through them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="baichuan2-7b")
    parser.add_argument("--bits", type=int, default=4, choices=(4, 8))
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--layers-per-net", type=int, default=4)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--work", type=Path, default=Path("build/compile_cost"))
    parser.add_argument("option", nargs="*", help="more options of baichuan2 compile, behind --")
    arguments = parser.parse_args()
    all_layers = SHAPES[arguments.shape].layers
    results: list[dict[str, float]] = []
    counts = (arguments.layers // 2, arguments.layers)
    for layers in counts:
        shutil.rmtree(arguments.work, ignore_errors=True)
        config = replace(shape_config(arguments.shape, arguments.bits), layers=layers)
        write_checkpoint(arguments.work / "checkpoint", RandomWeights(config))
        results.append(measure(arguments, arguments.work))
        show(f"{layers} layers, head, embedding", results[-1])
        shutil.rmtree(arguments.work)
    total = extrapolate(results[0], results[1], (*counts, all_layers))
    show(f"{all_layers} layers (extrapolated)", total)
    print(json.dumps({"measured": results, "extrapolated": total}))


if __name__ == "__main__":
    main()
