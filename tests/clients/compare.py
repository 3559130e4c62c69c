"""Send every variant to our server and to llama.cpp's, and print what each made of it.

``PYTHONPATH=src:tests python -m clients.compare [--peer-python PYTHON]``; both serve the demo
model. The interpreter of the peer is one that has xllamacpp (see ``benchmarks/requirements.txt``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from baichuan2_tpu.fetch import fetch_demo
from clients.variants import VARIANTS, Variant, judge, send
from running.server_process import ServerProcess

_PATIENCE_S = 60


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one server made of one variant; ``status`` is 0 where it closed the connection."""

    status: int
    is_right: bool
    message: str


def run_all(url: str, model: str) -> dict[str, Outcome]:
    """Send every variant."""
    outcomes: dict[str, Outcome] = {}
    for variant in VARIANTS:
        # A connection of its own: a server may close one after a stream, while the next request is sent.
        with httpx.Client(base_url=url, timeout=_PATIENCE_S, trust_env=False) as client:
            outcomes[variant.name] = _send(client, variant, model)
        print(f"{variant.name}: {outcomes[variant.name].status}", file=sys.stderr)  # noqa: T201
    return outcomes


def _send(client: httpx.Client, variant: Variant, model: str) -> Outcome:
    try:
        response = send(client, variant, model)
    except httpx.HTTPError as error:
        return Outcome(0, is_right=False, message=repr(error))
    body = response.content
    is_right = judge(variant, response.status_code, body)
    return Outcome(response.status_code, is_right, body.decode("utf-8", "replace")[:300])


@contextmanager
def _ours() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder, ServerProcess("demo", Path(folder)) as server:
        yield server.url


@contextmanager
def _peer(python: str) -> Iterator[str]:
    settings = {"gguf": str(fetch_demo()), "running": 1, "context": 2048, "threads": 2}
    script = Path(__file__).parents[2] / "benchmarks" / "servers" / "llama.py"
    with subprocess.Popen(
        [python, str(script), json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        print(started)  # noqa: T201
        yield started["url"]
        process.stdin.close()  # it ends with its input


def main() -> None:
    """Print a line per variant that a server got wrong, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", help="interpreter that has xllamacpp")
    given = parser.parse_args()
    with _ours() as url:
        outcomes = {"ours": run_all(url, "demo")}
    if given.peer_python:
        with _peer(given.peer_python) as url:
            outcomes["llama.cpp"] = run_all(url, "demo")
    for server, results in outcomes.items():
        for name, outcome in results.items():
            if not outcome.is_right:
                print(f"{server}: {name}: {outcome.status} {outcome.message}")  # noqa: T201
    for server, results in outcomes.items():
        right = sum(outcome.is_right for outcome in results.values())
        accepted = sum(200 <= outcome.status < 300 for outcome in results.values())
        print(f"{server}: {right} of {len(results)} answered rightly, {accepted} accepted")  # noqa: T201


if __name__ == "__main__":
    main()
