"""The examples run against a live server and say what the guide shows."""

import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from running.server_process import ServerProcess

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
KEY = "of-the-examples"


@pytest.fixture(scope="module")
def server(
    model_directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> Generator[ServerProcess, None, None]:
    home = tmp_path_factory.mktemp("home")
    options = ("--name", "demo", "--no-page")
    with ServerProcess(model_directory, home, *options, BAICHUAN2_API_KEY=KEY) as server:
        yield server


def run_example(server: ServerProcess, *command: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Run an example as a user does, against this server."""
    environment = os.environ | {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": key}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)


def read_lines(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    """Return the lines of an example by the words they begin with; random weights say anything."""
    assert done.returncode == 0, done.stderr
    words = ("model", "answer", "tokens", "stream", "json", "error", "chain")
    parts = [line.partition(": ") for line in done.stdout.splitlines()]
    return {word: text for word, _, text in parts if word in words}


def test_the_openai_package_talks_to_the_server(server: ServerProcess) -> None:
    lines = read_lines(run_example(server, sys.executable, str(EXAMPLES / "openai_chat.py")))
    assert lines.keys() >= {"model", "answer", "tokens", "stream", "json", "error"}
    assert lines["model"] == "demo"
    assert lines["error"] == "404 model_not_found"
    assert "'city'" in lines["json"]


def test_langchain_talks_to_the_server(server: ServerProcess) -> None:
    pytest.importorskip("langchain_openai", reason="run: pip install langchain-openai")
    lines = read_lines(run_example(server, sys.executable, str(EXAMPLES / "langchain_chat.py")))
    assert lines.keys() >= {"answer", "tokens", "stream", "chain"}
    assert int(lines["tokens"]) > 0


@pytest.mark.skipif(shutil.which("curl") is None, reason="install curl")
def test_curl_talks_to_the_server(server: ServerProcess) -> None:
    done = run_example(server, str(EXAMPLES / "chat.sh"))
    assert done.returncode == 0, done.stderr + done.stdout
    for part in ('"object":"list"', '"chat.completion"', "data: [DONE]", '"max_model_len"'):
        assert part in done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="install curl")
def test_a_wrong_key_is_an_error_object(server: ServerProcess) -> None:
    done = run_example(server, str(EXAMPLES / "chat.sh"), key="wrong")
    assert done.returncode != 0
    assert '"invalid_api_key"' in done.stdout
