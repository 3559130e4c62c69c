"""The demo model compiles, and answers on the simulator with the words of the cpu.

Needs the demo weights (93 MB, once) beside the toolchain. The bundle is kept in the user's cache: compiling
takes a minute, and what it is made of seldom changes.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import baichuan2_tpu.compile
from baichuan2_tpu.compile.driver import BuildSettings, compile_bundle
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch import cache_folder
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.model import load
from baichuan2_tpu.resolve import resolve_model
from baichuan2_tpu.toolchain import Toolchain
from running.served_bundle import ask, ask_together, count_launches, serve_engine

COMMAND = (sys.executable, "-c", "from baichuan2_tpu.cli import main; main()")
SETTINGS = CompileSettings(
    bits=8,
    head="w8",
    context=128,
    rows=256,
    stages=(Stage(1, 64), Stage(16, 64), Stage(1, 256), Stage(16, 256), Stage(64, 256)),
    head_rows=(1, 4),
    layers_per_net=4,
)
QUESTION = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module")
def demo() -> Path:
    try:
        return resolve_model("demo", notice=lambda _: None).path
    except FetchError as error:
        pytest.skip(f"the demo weights cannot be had: {error}")


@pytest.fixture(scope="module")
def bundle(demo: Path, toolchain: Toolchain) -> Path:
    """The demo's bundle, made anew when the checkpoint or the code that compiles has changed."""
    source = Path(next(iter(baichuan2_tpu.compile.__path__)))
    digest = hashlib.sha256(f"{demo.name} {toolchain.version} {SETTINGS}".encode())
    for file in sorted(source.glob("*.py")):
        digest.update(file.read_bytes())
    folder = cache_folder() / "test-bundles" / f"demo-{digest.hexdigest()[:12]}"
    if not folder.exists():
        shutil.rmtree(folder.parent, ignore_errors=True)  # of other code
        folder.parent.mkdir(parents=True)
        compile_bundle(demo, folder, SETTINGS, BuildSettings(toolchain))
    return folder


def generate(model: object, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    words = ("generate", str(model), "--temperature", "0", "--max-tokens", "6", *options, "--", QUESTION)
    return subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, check=False, env=os.environ | variables
    )


def test_the_simulator_answers_with_the_words_of_the_cpu(demo: Path, bundle: Path) -> None:
    on_cpu = json.loads(generate(demo, "--exact", "--json").stdout)
    done = generate(bundle, "--engine", "simulator", "--json")
    assert done.returncode == 0, done.stderr
    simulated = json.loads(done.stdout)
    assert simulated["engine"] == "bmrt-simulator"
    assert (simulated["text"], simulated["token_ids"]) == (on_cpu["text"], on_cpu["token_ids"])
    assert simulated["text"] == "The capital of France is Paris"


def test_too_little_device_memory_is_told_before_anything_is_loaded(bundle: Path) -> None:
    done = generate(bundle, "--engine", "simulator", CMODEL_GLOBAL_MEM_SIZE="0x6000000")
    assert (done.returncode, done.stdout) == (1, "")
    error = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "model.bmodel with its buffers needs 159." in error
    assert "MB of device memory, 100.7 MB of 100.7 MB are free" in error


CHATS = {
    "What is the capital of France?": 6,
    "Name a colour.": 5,
    "What is 2 + 3?": 4,
    "Say hello in Spanish.": 3,
}
"""Questions, and how many tokens of their answers are asked for."""


def test_four_chats_at_once_get_the_words_of_each_alone_in_the_launches_of_the_longest(
    demo: Path, bundle: Path
) -> None:
    """Sequences took turns on a compiled model, and each token of each had launches of its own."""
    with load(demo, exact=True) as reference, serve_engine(reference.engine, demo) as url:
        alone = [ask(url, *chat) for chat in CHATS.items()]
    assert len(set(alone)) == len(CHATS)
    with load(bundle, engine="simulator") as model:
        with serve_engine(model.engine, demo) as url:
            assert ask_together(url, CHATS) == alone
        launches_per_pass = -(-model.engine.config.layers // SETTINGS.layers_per_net) + 1
        passes = count_launches(model.engine) / launches_per_pass
    # Beside those of the longest answer, a prompt of some 30 tokens takes two of its own at most.
    assert passes <= max(CHATS.values()) + 2 * len(CHATS)
