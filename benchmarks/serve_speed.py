"""Compare the server with llama.cpp's at the shape of Baichuan2-7B: throughput and latency by clients.

Random weights of the same size on both sides, greedy answers of a fixed length to prompts of which no two
begin alike. Each client asks one question after the other. Both servers stay loaded and take turns at each
number of clients, so that a slow minute of the machine hits both.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain, pairwise
from pathlib import Path

from baichuan2_tpu.fetch import cache_folder
from baichuan2_tpu.shapes import SHAPES
from peers.gguf_model import make_gguf
from servers.asking import Answer, AnswerError, ask_stream, new_client
from servers.running import RunningServer, ServerMissingError

OURS = "ours"
PEER = "llama"
SETTLE_S = 1
BYTE_TOKENS = 259  # ids below are bytes and control tokens in a GGUF's vocabulary


@dataclass(frozen=True, slots=True)
class Settings:
    """What to ask, as the command line gave it."""

    shape: str
    bits: int
    layers: int
    threads: int
    clients: tuple[int, ...]
    rounds: int
    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True)
class Row:
    """What one server did for a number of clients. Units: tokens of answers per second; seconds."""

    server: str
    clients: int
    tok_per_s: float
    first_token_p50_s: float
    first_token_p95_s: float
    between_p50_s: float
    between_p95_s: float


def main() -> None:
    """Measure, print a table and, with --json, one JSON object as the last line."""
    given = parse_arguments()
    settings = Settings(
        given.shape,
        given.bits,
        given.layers or SHAPES[given.shape].layers,
        given.threads,
        tuple(given.clients),
        given.rounds,
        given.prompt,
        given.answer,
    )
    with ExitStack() as stack:
        servers = start_servers(settings, stack, peer_python=given.peer_python, cache=given.cache)
        rows = [row for count in settings.clients for row in measure(servers, count, settings)]
        versions = {server.name: server.version for server in servers}
    print("\n".join(table(rows)))
    print(f"\n{settings.bits} bits, {settings.threads} threads, {settings.layers} layers; ", end="")
    print(f"prompts of {settings.prompt_tokens}, answers of {settings.answer_tokens}; {versions}")
    ratios = compute_ratios(rows)
    for name, value in ratios.items():
        print(f"{name}: {value:.2f}")
    if given.json:
        facts = {"settings": asdict(settings), "versions": versions, "rows": [asdict(row) for row in rows]}
        print(json.dumps({**facts, "ratios": ratios}))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=[*SHAPES], default="baichuan2-7b")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--layers", type=int, help="fewer layers for a quick look; figures are not scaled")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--rounds", type=int, default=2, help="questions per client (2)")
    parser.add_argument("--prompt", type=int, default=16, metavar="TOKENS")
    parser.add_argument("--answer", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with xllamacpp (this one)")
    parser.add_argument(
        "--cache", type=Path, default=cache_folder() / "benchmarks", help="folder of the GGUF"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    return parser.parse_args()


def start_servers(
    settings: Settings, stack: ExitStack, *, peer_python: str, cache: Path
) -> list[RunningServer]:
    """Load our server, and llama.cpp's if it is installed."""
    common = {
        "context": settings.prompt_tokens + settings.answer_tokens + 16,
        "threads": settings.threads,
        "running": max(settings.clients),
    }
    shape = {"shape": settings.shape, "bits": settings.bits, "layers": settings.layers}
    tell("loading ours")
    servers = [stack.enter_context(RunningServer(OURS, common | shape, python=sys.executable))]
    tell("loading llama.cpp")
    gguf = make_gguf(settings.shape, bits=settings.bits, layers=settings.layers, folder=cache)
    try:
        peer = RunningServer(PEER, common | {"gguf": gguf.path}, python=peer_python)
        servers.append(stack.enter_context(peer))
    except ServerMissingError as error:
        tell(str(error))
    return servers


def measure(servers: Sequence[RunningServer], clients: int, settings: Settings) -> list[Row]:
    """Ask every server from a number of clients at once."""
    rows: list[Row] = []
    for server in servers:
        time.sleep(SETTLE_S)  # the idle threads of the server before spin for a while
        tell(f"{clients} clients: {server.name}")
        asyncio.run(ask_all(server.url, 1, 1, settings, answer_tokens=2))
        start_s = time.perf_counter()
        answers = asyncio.run(ask_all(server.url, clients, settings.rounds, settings))
        rows.append(summarize(server.name, clients, answers, time.perf_counter() - start_s))
    return rows


async def ask_all(
    url: str, clients: int, rounds: int, settings: Settings, *, answer_tokens: int | None = None
) -> list[Answer]:
    """Let each client ask its questions, and return all answers."""
    tokens = answer_tokens or settings.answer_tokens
    async with new_client(url) as client:

        async def ask_in_turn() -> list[Answer]:
            return [await ask_stream(client, question(settings, tokens)) for _ in range(rounds)]

        by_client = await asyncio.gather(*(ask_in_turn() for _ in range(clients)))
    answers = list(chain.from_iterable(by_client))
    if any(answer.tokens != tokens for answer in answers):
        raise AnswerError(f"an answer ended early; all should have {tokens} tokens")
    return answers


def question(settings: Settings, tokens: int) -> dict[str, object]:
    """Return a question that no server has seen before."""
    size = SHAPES[settings.shape].vocabulary_size
    ids = [random.randrange(BYTE_TOKENS, size) for _ in range(settings.prompt_tokens)]
    return {"model": "random", "prompt": ids, "max_tokens": tokens, "temperature": 0}


def summarize(server: str, clients: int, answers: Sequence[Answer], elapsed_s: float) -> Row:
    """Return throughput and latencies of all answers."""
    first = [answer.arrivals_s[0] for answer in answers]
    between = [later - sooner for answer in answers for sooner, later in pairwise(answer.arrivals_s)]
    return Row(
        server,
        clients,
        sum(answer.tokens for answer in answers) / elapsed_s,
        statistics.median(first),
        percentile(first, 95),
        statistics.median(between),
        percentile(between, 95),
    )


def percentile(values: Sequence[float], share: int) -> float:
    """Return the smallest value that ``share`` percent do not exceed."""
    return sorted(values)[-(-len(values) * share // 100) - 1]


def compute_ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Return each server's throughput over that of one client, and ours over llama.cpp's, by clients."""
    rates = {(row.server, row.clients): row.tok_per_s for row in rows}
    ratios: dict[str, float] = {}
    for (server, clients), rate in rates.items():
        if clients > 1 and (server, 1) in rates:
            ratios[f"{server}: {clients} clients over 1"] = rate / rates[server, 1]
        if server == OURS and (PEER, clients) in rates:
            ratios[f"{clients} clients: ours over llama.cpp"] = rate / rates[PEER, clients]
    return ratios


def table(rows: Sequence[Row]) -> list[str]:
    """Return the lines of a Markdown table."""
    heads = ("server", "clients", "tok/s", "first token p50", "p95", "between tokens p50", "p95")
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        times = (
            f"{row.first_token_p50_s:.2f} s",
            f"{row.first_token_p95_s:.2f} s",
            f"{row.between_p50_s * 1000:.0f} ms",
            f"{row.between_p95_s * 1000:.0f} ms",
        )
        lines.append(f"| {row.server} | {row.clients} | {row.tok_per_s:.1f} | {' | '.join(times)} |")
    return lines


def tell(step: str) -> None:
    """Print progress on stderr."""
    print(step, file=sys.stderr)


if __name__ == "__main__":
    main()
