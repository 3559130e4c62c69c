"""Compare the CPU engine with llama.cpp and onnxruntime at the shape of Baichuan2-7B, random weights.

Every program runs in its own process. They take turns in every round, so that a slow minute of the machine
hits all of them. A ratio is our rate over theirs in one round; the median over the rounds is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from baichuan2_tpu.doctor import Machine
from baichuan2_tpu.doctor.host import read_processor
from baichuan2_tpu.fetch import cache_folder
from baichuan2_tpu.shapes import SHAPES
from peers.client import PeerMissingError, RunningPeer
from peers.gguf_model import make_gguf
from peers.protocol import Description, Job

SHAPE = "baichuan2-7b"
OURS = "ours"
PEERS = ("llama_cpp", "onnxruntime")
GGUF_READERS = ("llama_cpp", "llama_bench")
PROMPT_TOKENS = 14  # of the vendor's own prompt
WARM_UP_TOKENS = 32

# The idle threads of the program that ran before spin for a while, then sleep.
SETTLE_S = 0.5


@dataclass(frozen=True, slots=True)
class Settings:
    """What to compare, as the command line gave it."""

    bits: tuple[int, ...]
    peers: tuple[str, ...]
    llama_bench: tuple[tuple[str, ...], ...]
    """Commands, each with arguments of its own."""
    layers: int
    threads: int
    repeats: int
    prefill_tokens: int
    decode_tokens: int
    peer_python: str
    cache: Path


@dataclass(frozen=True, slots=True)
class Rates:
    """What one program reached in every round, for the whole shape."""

    description: Description
    prefill_tok_per_s: list[float]
    decode_tok_per_s: list[float]

    def to_json(self) -> dict[str, object]:
        """Return the description, the medians and every round."""
        return {
            **asdict(self.description),
            "prefill_tok_per_s": statistics.median(self.prefill_tok_per_s),
            "decode_tok_per_s": statistics.median(self.decode_tok_per_s),
            "prefill_tok_per_s_rounds": self.prefill_tok_per_s,
            "decode_tok_per_s_rounds": self.decode_tok_per_s,
        }


def main() -> None:
    """Compare, print a table and, with --json, one JSON object as the last line."""
    settings, is_json = parse_arguments()
    print(describe_processor())
    results: dict[str, dict[str, object]] = {}
    for bits in settings.bits:
        rates = measure(bits, settings)
        print(f"\n{bits} bits, {settings.threads} threads, medians of {settings.repeats} rounds, ", end="")
        print(
            f"prefill of {settings.prefill_tokens}, decode of {settings.decode_tokens} after {PROMPT_TOKENS}"
        )
        print("\n".join(table(rates)))
        results[str(bits)] = {
            name: compare(rates[OURS], theirs) for name, theirs in rates.items() if name != OURS
        }
    print(
        "\n~ scaled from fewer layers. onnxruntime runs only the linear layers: no head, attention or norms."
    )
    if is_json:
        print(json.dumps(results))


def describe_processor() -> str:
    """Return the processor and the instruction sets that matrix kernels can be written for."""
    processor = read_processor(Machine()).value
    if processor is None:
        return "an unknown processor"
    return f"{processor.model}, {processor.threads} threads: {' '.join(processor.instructions)}"


def parse_arguments() -> tuple[Settings, bool]:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--bits", type=int, nargs="+", choices=(4, 8), default=[4, 8])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument(
        "--llama-bench",
        metavar="COMMAND",
        action="append",
        default=[],
        help="a prebuilt llama-bench to compare with, and options for it in the same quotes: "
        "'/opt/ik/llama-bench -rtr 1'; may be repeated",
    )
    parser.add_argument(
        "--layers", type=int, default=32, help="with fewer, rates are scaled and marked ~ (32)"
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prefill", type=int, default=512, metavar="TOKENS")
    parser.add_argument("--decode", type=int, default=24, metavar="TOKENS")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with the peers (this one)")
    parser.add_argument(
        "--cache", type=Path, default=cache_folder() / "benchmarks", help="folder of the GGUF"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    given = parser.parse_args()
    settings = Settings(
        bits=tuple(given.bits),
        peers=tuple(given.peers),
        llama_bench=tuple(tuple(shlex.split(command)) for command in given.llama_bench),
        layers=given.layers,
        threads=given.threads,
        repeats=given.repeats,
        prefill_tokens=given.prefill,
        decode_tokens=given.decode,
        peer_python=given.peer_python,
        cache=given.cache,
    )
    return settings, given.json


def measure(bits: int, settings: Settings) -> dict[str, Rates]:
    """Run every program that is installed, in rounds; ours comes first."""
    with ExitStack() as stack:
        programs = start_programs(bits, settings, stack)
        # Touch the pages of the weights and start all threads before anything is timed.
        for program in programs:
            program.prefill(WARM_UP_TOKENS)
            program.decode(PROMPT_TOKENS, 2)
        rates = {program.name: Rates(program.description, [], []) for program in programs}
        for number in range(settings.repeats):
            for program in programs:
                time.sleep(SETTLE_S)
                tell(f"{bits} bits: round {number + 1} of {settings.repeats}, {program.name}")
                measure_round(program, rates[program.name], settings)
        return rates


def start_programs(bits: int, settings: Settings, stack: ExitStack) -> list[RunningPeer]:
    """Start our engine and the peers; a peer that is not installed is reported and left out."""
    shape = SHAPES[SHAPE]
    programs: list[RunningPeer] = []
    named = [(name, ()) for name in (OURS, *settings.peers)]
    for name, command in [*named, *(("llama_bench", command) for command in settings.llama_bench)]:
        label = command[0] if command else name
        tell(f"{bits} bits: loading {label}")
        job = Job(
            shape=SHAPE,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            layers=settings.layers,
            bits=bits,
            threads=settings.threads,
            context=max(settings.prefill_tokens, PROMPT_TOKENS + settings.decode_tokens),
            gguf=make_gguf(SHAPE, bits=bits, layers=settings.layers, folder=settings.cache)
            if name in GGUF_READERS
            else None,
            command=command,
        )
        # The package is installed here; the peers may live in an environment of their own.
        python = settings.peer_python if name in PEERS else sys.executable
        try:
            programs.append(stack.enter_context(RunningPeer(name, job, python=python, label=label)))
        except PeerMissingError as error:
            tell(str(error))
    return programs


def measure_round(program: RunningPeer, rates: Rates, settings: Settings) -> None:
    """Add one round to ``rates``, scaled to all layers of the shape.

    Prefill is bound by arithmetic, of which the head does one row; decode reads every weight once.
    """
    built, all_layers = program.description, SHAPES[SHAPE].layers
    prefill_scale = all_layers / built.layers
    full_bytes = built.block_bytes * all_layers / built.layers + built.head_bytes
    decode_scale = full_bytes / (built.block_bytes + built.head_bytes)
    prefill_s = program.prefill(settings.prefill_tokens) * prefill_scale
    decode_s = program.decode(PROMPT_TOKENS, settings.decode_tokens) * decode_scale
    rates.prefill_tok_per_s.append(settings.prefill_tokens / prefill_s)
    rates.decode_tok_per_s.append(settings.decode_tokens / decode_s)


def compare(ours: Rates, theirs: Rates) -> dict[str, object]:
    """Return the ratios and the numbers behind them."""
    return {
        "decode_ratio": ratio(ours.decode_tok_per_s, theirs.decode_tok_per_s),
        "prefill_ratio": ratio(ours.prefill_tok_per_s, theirs.prefill_tok_per_s),
        "ours": ours.to_json(),
        "theirs": theirs.to_json(),
    }


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


def table(rates: dict[str, Rates]) -> list[str]:
    """Return the lines of a Markdown table, one row per program."""
    heads = (
        "",
        "weights",
        "kernels",
        "GB read per token",
        "prefill tok/s",
        "decode tok/s",
        "ours, prefill",
        "ours, decode",
    )
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, program in rates.items():
        built = program.description
        mark = "" if built.layers == SHAPES[SHAPE].layers else "~"
        size = (built.block_bytes / built.layers * SHAPES[SHAPE].layers + built.head_bytes) / 1e9
        cells = [
            built.version,
            built.formats,
            built.kernels,
            f"{mark}{size:.2f}",
            mark + spread(program.prefill_tok_per_s),
            mark + spread(program.decode_tok_per_s),
        ]
        if name == OURS:
            cells += ["", ""]
        else:
            cells.append(f"{ratio(rates[OURS].prefill_tok_per_s, program.prefill_tok_per_s):.2f} x")
            cells.append(f"{ratio(rates[OURS].decode_tok_per_s, program.decode_tok_per_s):.2f} x")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def spread(values: list[float]) -> str:
    """Return the median with the smallest and the largest value."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def tell(step: str) -> None:
    """Print progress on stderr."""
    print(step, file=sys.stderr)


if __name__ == "__main__":
    main()
