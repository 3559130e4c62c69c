"""Load a live server with clients that sometimes leave half-way; check every answer and the server's memory.

Each question is answered alone first; under load its answer must be the same, greedy or with a seed. At the
end nothing may be lost: the server's counts must equal those of the clients, and it must exit with code 0.
Memory must not grow once keys and values have filled their limit, which should happen in the first quarter.
A compiled model promises the same tokens only where its choice is clear: ``--margin`` keeps answers greedy
and ends each before its first near tie. ``--overflowing`` mixes in requests that must fail, each alone;
with ``--attacker`` one client sends only attacks.
All traffic stays on 127.0.0.1, and the load ends after the given time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import httpx

from servers.asking import Answer, AnswerError, ask, ask_stream, new_client
from servers.attacker import Siege, attack, watch_readiness

COMMAND = "from baichuan2_tpu.cli import main; main()"
TOPICS = ("France", "the sea", "bubble sort", "tea", "the moon", "C++", "北京", "a bicycle")
STARTS = ("What is", "Tell me about", "Write a poem on", "Why is there")
MOST_GROWTH = 0.05
"""Share by which memory may grow between the second quarter of the load and the last."""
WAYS = {"stream": 5, "whole": 3, "leave stream": 3, "give up waiting": 1}
"""How clients ask, with the weight of each way."""
OVERFLOWING_SHARE = 0.1
"""Share of requests with a token that overflows, where there is one."""


@dataclass(frozen=True, slots=True)
class Report:
    """What happened. Units: megabytes of anonymous memory, in quarters of the time, and before and after it.

    ``pause_s`` is the longest between two pieces of a streamed answer; the server took ``end_s`` to end.
    """

    clients: int
    seconds: float
    asked: dict[str, int]
    wrong: list[str]
    pause_s: float
    memory_mb: list[float]
    memory_idle_mb: tuple[float, float]
    server_counts: dict[str, int]
    siege: Siege
    end_s: float
    exit_code: int

    @property
    def growth(self) -> float:
        """Share by which memory grew since the second quarter, when all pools are full."""
        return self.memory_mb[-1] / self.memory_mb[1] - 1

    @property
    def faults(self) -> list[str]:
        """Everything that must not happen."""
        faults = [*self.wrong, *self.siege.faults]
        if self.growth > MOST_GROWTH:
            faults.append(f"memory grew by {self.growth:.1%}")
        if self.exit_code:
            faults.append(f"the server ended with exit code {self.exit_code}")
        if self.server_counts["running"] or self.server_counts["waiting"]:
            faults.append("requests are left in the server")
        if self.server_counts["faults"]:
            faults.append("steps of the server failed")
        if self.siege.statuses:  # the server counts the attacks too
            return faults
        if self.server_counts["failed"] != self.asked.get("failed", 0):
            faults.append("the server counts failed requests")
        ended = self.server_counts["finished"] + self.server_counts["cancelled"]
        # The server never sees a client that gives up before its request is read.
        if not self.asked["kept"] <= ended <= sum(self.asked.values()):
            faults.append(f"the server counts {ended} requests, the clients {self.asked}")
        return faults


@dataclass(slots=True)
class Tally:
    """What the clients saw."""

    asked: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    pause_s: float = 0


def main() -> None:
    """Load a server, print what happened, and exit with 1 if anything is wrong."""
    given = parse_arguments()
    report = run(given)
    print(f"{report.clients} clients, {report.seconds:.0f} s: {dict(report.asked)}")
    print(f"longest pause in a streamed answer: {report.pause_s:.2f} s")
    before, after = report.memory_idle_mb
    print(
        f"memory in quarters: {', '.join(f'{median:.0f}' for median in report.memory_mb)} MB; "
        f"idle: {before:.0f} MB before, {after:.0f} MB after"
    )
    siege = report.siege
    if siege.statuses:
        print(f"attacks by status: {dict(siege.statuses)}; the longest took {siege.longest_attack_s:.1f} s")
    print(f"ready: {dict(siege.readiness)}; the longest answer took {siege.longest_readiness_s:.2f} s")
    print(f"SIGTERM: exit code {report.exit_code} after {report.end_s:.1f} s")
    print(f"the server's counts: {report.server_counts}")
    print(
        "\n".join(report.faults)
        or "every whole answer equals its solo run; nothing is lost, and memory does not grow"
    )
    if given.json:
        print(json.dumps({**asdict(report), "growth": report.growth, "faults": report.faults}))
    sys.exit(bool(report.faults))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="demo", help="a model for baichuan2 serve (demo)")
    parser.add_argument("--engine", default="auto", help="the engine of baichuan2 serve (auto)")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--questions", type=int, default=32, help="number of different questions (32)")
    parser.add_argument("--tokens", type=int, default=48, help="length of the longest answer (48)")
    parser.add_argument("--repeats", type=int, default=12, help="of a question in the longest prompt (12)")
    parser.add_argument(
        "--margin",
        type=float,
        help="greedy answers, each up to where the best two log probabilities are so close",
    )
    parser.add_argument("--overflowing", type=int, metavar="ID", help="a token whose states are no numbers")
    parser.add_argument("--attacker", action="store_true", help="let one of the clients send only attacks")
    parser.add_argument("--kv-memory", type=float, default=0.25, metavar="GB")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seed", type=int, default=0, help="of the questions and the ways to ask (0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    return parser.parse_args()


def run(given: argparse.Namespace) -> Report:
    """Start the server, ask, and stop it."""
    chance = random.Random(given.seed)
    questions = [make_question(number, given, chance) for number in range(given.questions)]
    process, url = start_server(given)
    try:
        solo_runs = len(questions)
        if given.margin is not None:
            tell(f"looking for clear answers to {len(questions)} questions")
            questions = asyncio.run(keep_clear(url, questions, given.margin))
            solo_runs += len(questions)
        tell(f"{len(questions)} solo runs")
        alone = asyncio.run(ask_alone(url, questions))
        tell(f"{given.clients} clients for {given.seconds:g} s")
        before_mb = memory_mb(process.pid)
        start_s = time.perf_counter()
        siege = Siege()
        known = list(zip(questions, alone, strict=True))
        tally, samples = asyncio.run(load(url, process.pid, known, siege, given=given))
        seconds = time.perf_counter() - start_s
        after_mb = memory_mb(process.pid)
        counts = read_counts(url)
        counts["finished"] -= solo_runs
        end_s = -time.perf_counter()
        process.terminate()
        code = process.wait(60)
        end_s += time.perf_counter()
    finally:
        process.kill()
        process.wait()
    asked = dict(tally.asked)
    return Report(
        given.clients,
        seconds,
        asked,
        tally.wrong,
        tally.pause_s,
        quarter_medians(samples),
        (before_mb, after_mb),
        counts,
        siege,
        end_s,
        code,
    )


def start_server(given: argparse.Namespace) -> tuple[subprocess.Popen[str], str]:
    """Start ``baichuan2 serve`` and return it with its URL; its log lines are dropped."""
    options = [
        "--port",
        "0",
        "--name",
        "served",
        "--no-page",
        "--engine",
        given.engine,
        "--log",
        "json",
        "--kv-memory",
        str(given.kv_memory),
    ]
    options += ["--max-queue", str(given.clients)]
    if given.threads:
        options += ["--threads", str(given.threads)]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "serve", given.model, *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if '"event": "ready"' in line:
            # Drain the pipe: the server would stop at a full one.
            subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            return process, json.loads(line)["url"]
        tell(line.rstrip())
    raise RuntimeError(f"the server ended with exit code {process.wait()} before it was ready")


def make_question(number: int, given: argparse.Namespace, chance: random.Random) -> dict[str, object]:
    """Return the body of a completion; many prompts begin alike, every third question samples with a seed."""
    prompt = f"{chance.choice(STARTS)} {chance.choice(TOPICS)}, {number}? " * chance.randint(1, given.repeats)
    drawn = {"temperature": 0.8, "top_k": 40, "seed": number} if number % 3 == 0 else {"temperature": 0}
    return {"model": "served", "prompt": prompt, "max_tokens": chance.randint(1, given.tokens), **drawn}


async def keep_clear(
    url: str, questions: Sequence[dict[str, object]], margin: float
) -> list[dict[str, object]]:
    """Return greedy questions whose answers end before two tokens are nearly as likely."""
    kept: list[dict[str, object]] = []
    async with new_client(url) as client:
        for question in questions:
            greedy = {name: question[name] for name in ("model", "prompt", "max_tokens")} | {"temperature": 0}
            gaps = await ask_gaps(client, greedy)
            count = next((place for place, gap in enumerate(gaps) if gap < margin), len(gaps))
            if count:
                kept.append({**greedy, "max_tokens": count})
    return kept


async def ask_gaps(client: httpx.AsyncClient, question: dict[str, object]) -> list[float]:
    """Return how far the best two log probabilities of each token of an answer are apart."""
    response = await client.post("/v1/completions", json={**question, "logprobs": 2})
    response.raise_for_status()
    pairs = [sorted(best.values()) for best in response.json()["choices"][0]["logprobs"]["top_logprobs"]]
    # Two tokens with the same text are one entry: nothing is known of their distance.
    return [pair[-1] - pair[-2] if len(pair) > 1 else 0.0 for pair in pairs]


async def ask_alone(url: str, questions: Sequence[dict[str, object]]) -> list[Answer]:
    """Return the answers to all questions, one after the other."""
    async with new_client(url) as client:
        return [await ask(client, question) for question in questions]


async def load(
    url: str,
    process: int,
    known: Sequence[tuple[dict[str, object], Answer]],
    siege: Siege,
    *,
    given: argparse.Namespace,
) -> tuple[Tally, list[float]]:
    """Ask from all clients until the time is over; return what they saw, and samples of the memory.

    Side effect: ``siege`` has what became of attacks, and whether the server was ready.
    """
    tally = Tally()
    samples: list[float] = []
    end_s = time.perf_counter() + given.seconds

    async def be_client(number: int) -> None:
        chance = random.Random(f"{given.seed} {number}")
        async with new_client(url) as client:
            while time.perf_counter() < end_s:
                if given.overflowing is not None and chance.random() < OVERFLOWING_SHARE:
                    await ask_overflowing(client, given.overflowing, tally)
                else:
                    await ask_once(client, *chance.choice(known), chance, tally)

    async def watch_memory() -> None:
        while time.perf_counter() < end_s:
            samples.append(memory_mb(process))
            await asyncio.sleep(given.seconds / 100)

    clients = [be_client(number) for number in range(given.attacker, given.clients)]
    if given.attacker:
        clients.append(attack(url, end_s, siege, given.seed))
    await asyncio.gather(watch_memory(), watch_readiness(url, end_s, siege), *clients)
    await wait_until_idle(url)
    return tally, samples


async def ask_once(
    client: httpx.AsyncClient, question: dict[str, object], alone: Answer, chance: random.Random, tally: Tally
) -> None:
    """Ask in one of the ways; an answer that is read to its end must equal that of the solo run."""
    way = chance.choices([*WAYS], [*WAYS.values()])[0]
    answer = None
    try:
        if way == "stream":
            answer = await ask_stream(client, question)
            gaps = (later - sooner for sooner, later in pairwise(answer.arrivals_s))
            tally.pause_s = max(tally.pause_s, max(gaps, default=0))
        elif way == "whole":
            answer = await ask(client, question)
        elif way == "leave stream":
            await ask_stream(client, question, leave_after=chance.randint(1, 8))
        else:
            await asyncio.wait_for(ask(client, question), chance.uniform(0.01, 0.5))
    except asyncio.TimeoutError:
        pass  # this way gives up on purpose
    except (AnswerError, httpx.HTTPError) as error:
        tally.wrong.append(f"{way}: {type(error).__name__}: {error}")
    tally.asked["kept" if answer else "left"] += 1
    if answer and (answer.text, answer.finish_reason, answer.tokens) != (
        alone.text,
        alone.finish_reason,
        alone.tokens,
    ):
        tally.wrong.append(f"{way}: {question} gave {answer.text!r} under load, {alone.text!r} alone")


async def ask_overflowing(client: httpx.AsyncClient, token: int, tally: Tally) -> None:
    """Ask what drives the states of its sequence beyond all numbers; it must get an error."""
    body = {"model": "served", "prompt": [token + 5, token, token + 6], "max_tokens": 4, "temperature": 0}
    tally.asked["failed"] += 1
    try:
        answer = await ask(client, body)
    except (AnswerError, httpx.HTTPError) as error:
        if "overflows" not in str(error):
            tally.wrong.append(f"overflowing: {type(error).__name__}: {error}")
    else:
        tally.wrong.append(f"overflowing: gave {answer.text!r}")


async def wait_until_idle(url: str) -> None:
    """Wait until the server has noticed that the last clients are gone."""
    for _ in range(100):
        counts = read_counts(url)
        if not counts["running"] + counts["waiting"]:
            return
        await asyncio.sleep(0.1)


def read_counts(url: str) -> dict[str, int]:
    """Return the counts of the server's own metrics."""
    text = httpx.get(f"{url}/metrics", trust_env=False).text
    names = {"running": "requests_running", "waiting": "requests_waiting", "faults": "engine_faults_total"}
    outcomes = ("finished", "cancelled", "failed", "refused")
    names |= {outcome: f'requests_total{{outcome="{outcome}"}}' for outcome in outcomes}
    values = dict(re.findall(r"^baichuan2_(\S+) (\S+)$", text, re.MULTILINE))
    return {name: int(float(values[key])) for name, key in names.items()}


def memory_mb(process: int) -> float:
    """Return the anonymous memory of a process, that is without mapped files."""
    status = Path(f"/proc/{process}/status").read_text()
    match = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    assert match is not None
    return int(match.group(1)) / 1000


def quarter_medians(samples: Sequence[float]) -> list[float]:
    """Return the median of each quarter of the samples."""
    size = max(1, len(samples) // 4)
    return [statistics.median(samples[start : start + size]) for start in range(0, 4 * size, size)]


def tell(step: str) -> None:
    """Print progress on stderr."""
    print(step, file=sys.stderr)


if __name__ == "__main__":
    main()
