"""What the benchmarks of the server compute themselves: ratios, percentiles, and what counts as a fault."""

import importlib
import random
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("serve_speed")


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("serve_load")


def test_ratios_are_over_one_client_and_over_the_peer(speed: ModuleType) -> None:
    rates = {("ours", 1): 7.0, ("llama", 1): 5.0, ("ours", 8): 21.0, ("llama", 8): 14.0}
    rows = [speed.Row(*key, rate, 0, 0, 0, 0) for key, rate in rates.items()]
    assert speed.compute_ratios(rows) == {
        "1 clients: ours over llama.cpp": 1.4,
        "ours: 8 clients over 1": 3.0,
        "8 clients: ours over llama.cpp": 1.5,
        "llama: 8 clients over 1": 2.8,
    }
    lines = speed.table(rows)
    assert lines[2] == "| ours | 1 | 7.0 | 0.00 s | 0.00 s | 0 ms | 0 ms |"


@pytest.mark.parametrize(("share", "expected"), [(1, 1), (50, 10), (95, 19), (100, 20)])
def test_a_percentile_is_one_of_the_values(speed: ModuleType, share: int, expected: int) -> None:
    assert speed.percentile(range(20, 0, -1), share) == expected


def test_waiting_is_taken_from_arrivals(speed: ModuleType) -> None:
    asking = importlib.import_module("servers.asking")
    answers = [asking.Answer("", "length", 3, [1.0, 1.5, 2.5]), asking.Answer("", "length", 2, [2.0, 2.1])]
    row = speed.summarize("ours", 2, answers, 2.5)
    assert row.tok_per_s == 2.0
    assert (row.first_token_p50_s, row.first_token_p95_s) == (1.5, 2.0)
    assert (row.between_p50_s, row.between_p95_s) == (0.5, 1.0)


def good_report(load: ModuleType) -> Any:
    counts = {
        "running": 0,
        "waiting": 0,
        "faults": 0,
        "finished": 8,
        "cancelled": 2,
        "failed": 0,
        "refused": 0,
    }
    siege = load.Siege()
    siege.readiness["ok"] = 3
    asked = {"kept": 7, "left": 4}
    memory_mb = [50.0, 100.0, 102.0, 104.0]
    return load.Report(2, 1.0, asked, [], 0.1, memory_mb, (40.0, 50.0), counts, siege, 1.0, 0)


def test_a_load_without_faults_has_none(load: ModuleType) -> None:
    assert good_report(load).faults == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"memory_mb": [50.0, 100.0, 105.0, 110.0]}, "memory grew by 10.0%"),
        ({"exit_code": 1}, "the server ended with exit code 1"),
        ({"wrong": ["stream: another answer"]}, "stream: another answer"),
    ],
)
def test_a_fault_is_told(load: ModuleType, changes: dict[str, object], fault: str) -> None:
    assert replace(good_report(load), **changes).faults == [fault]


def test_a_server_that_is_not_ready_or_fails_under_attack_is_told(load: ModuleType) -> None:
    report = good_report(load)
    report.siege.statuses.update({"400": 5, "500": 2})
    report.siege.readiness["faulty"] += 1
    assert report.faults == ["2 attacks got the status 500", "the server was not ready: {'faulty': 1}"]


def test_every_attack_has_a_name_and_bytes_of_its_own(load: ModuleType) -> None:
    attacks = importlib.import_module("servers.attacks").all_attacks()
    assert len({attack.name for attack in attacks}) == len({attack.content for attack in attacks}) > 80
    assert load.attack is not None


def test_a_request_that_must_fail_is_no_fault_and_one_that_does_not_is(load: ModuleType) -> None:
    report = good_report(load)
    failing = replace(report, asked={**report.asked, "failed": 2})
    assert failing.faults == ["the server counts failed requests"]
    assert replace(failing, server_counts={**report.server_counts, "failed": 2}).faults == []


@pytest.mark.parametrize(
    ("count", "fault"),
    [
        ({"waiting": 1}, "requests are left in the server"),
        ({"faults": 1}, "steps of the server failed"),
        ({"finished": 1}, "the server counts 3 requests, the clients {'kept': 7, 'left': 4}"),
        ({"finished": 10}, "the server counts 12 requests, the clients {'kept': 7, 'left': 4}"),
    ],
)
def test_a_request_that_is_lost_is_told(load: ModuleType, count: dict[str, int], fault: str) -> None:
    report = good_report(load)
    assert replace(report, server_counts=report.server_counts | count).faults == [fault]


def test_questions_are_those_of_their_seed(load: ModuleType) -> None:
    given = Namespace(tokens=48, repeats=12)
    first, again = ([load.make_question(n, given, random.Random(5)) for n in range(9)] for _ in range(2))
    assert first == again
    assert [question for question in first if "seed" in question] == [first[0], first[3], first[6]]
    assert load.quarter_medians([1.0, 3.0, 2.0, 2.0, 5.0, 7.0, 4.0, 4.0]) == [2.0, 2.0, 6.0, 4.0]
