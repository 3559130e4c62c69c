"""A compiled bundle is evaluated on the simulator beside the checkpoint that it was compiled from."""

import json
import subprocess
import sys
from pathlib import Path

from models.tiny_bundle import TinyBundles

COMMAND = (sys.executable, "-c", "from baichuan2_tpu.cli import main; main()")
TEXT = "The capital of France is Paris. 你好!"


def evaluate(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "evaluate", *map(str, words)], capture_output=True, text=True, check=False
    )


def test_the_simulator_has_the_perplexity_of_the_cpu(tiny_bundle: TinyBundles, tmp_path: Path) -> None:
    tiny = tiny_bundle()
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    done = evaluate(
        *(tiny.folder, "--engine", "simulator", "--text", text, "--window", 16, "--json"),
        *("--against", tiny.checkpoint, "--exact"),
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert (facts["engine"], facts["weights"]) == ("bmrt-simulator", "4 bits")
    assert facts["against"]["engine"] == "cpu, exact"
    # The same integers; states between layers are float16 there.
    assert abs(facts["comparison"]["rise_percent"]) < 0.5
    assert facts["comparison"]["same_first_choice"] > 0.9


def test_the_exact_mode_needs_a_side_on_the_cpu(tiny_bundle: TinyBundles, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, "utf-8")
    done = evaluate(tiny_bundle().folder, "--engine", "simulator", "--text", text, "--exact")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the exact mode are only for the cpu engine" in done.stderr
