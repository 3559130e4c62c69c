"""Ordinary clients, each in an environment of its own, against a server whose answers are known.

Needs the clients, which BAICHUAN2_TEST_CLIENTS=1 installs from PyPI and npm.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Generator

import pytest

from clients.acting_server import acting_server
from clients.environments import CLIENTS, Client, ClientMissingError, install
from running.served import MODEL

pytestmark = pytest.mark.skipif(
    os.environ.get("BAICHUAN2_TEST_CLIENTS") != "1",
    reason="set BAICHUAN2_TEST_CLIENTS=1; it installs a dozen clients from PyPI and npm (1 GB)",
)
_PATIENCE_S = 300


@pytest.fixture(scope="module")
def url() -> Generator[str, None, None]:
    with acting_server() as url:
        yield url


RUNS = [(client, script) for client in CLIENTS for script in client.scripts]


@pytest.mark.parametrize(
    ("client", "script"), RUNS, ids=[f"{client.name}-{script.partition('.')[0]}" for client, script in RUNS]
)
def test_client_does_all_it_is_asked_to(client: Client, script: str, url: str) -> None:
    try:
        install(client)
    except ClientMissingError as error:
        pytest.skip(str(error))
    run = subprocess.run(
        [*client.command(script), url, MODEL],
        capture_output=True,
        text=True,
        timeout=_PATIENCE_S,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    # Clients print on their own account.
    reports = [json.loads(line) for line in run.stdout.splitlines() if line.startswith('{"scenario"')]
    faults = {report["scenario"]: report["fault"] for report in reports}
    assert faults
    assert not any(faults.values()), f"{faults}\n{run.stderr}"
