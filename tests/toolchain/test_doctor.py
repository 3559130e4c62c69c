"""What the doctor computes on a device, on the simulator: the same calls as on hardware."""

from pathlib import Path

import pytest

from baichuan2_tpu.doctor.child_process import run_apart, work
from baichuan2_tpu.toolchain import Toolchain, find_simulator
from models.tiny_bundle import TinyBundles, write_tiny_checkpoint


def test_memory_gives_back_what_it_was_given(toolchain: Toolchain) -> None:
    outcome = run_apart("memory", "0", str(find_simulator(toolchain.root)))
    assert outcome.problem == ""
    assert outcome.told == "16 MiB sent, copied there and fetched are the same"


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_agrees_with_its_checkpoint(tiny_bundle: TinyBundles, bits: int) -> None:
    made = tiny_bundle(4 if bits == 4 else 8)
    outcome = run_apart("net", "simulator", str(made.folder), "0", str(made.checkpoint))
    assert outcome.told.startswith("a layer beside numpy is off by ")


def test_a_layer_of_another_checkpoint_is_noticed(tiny_bundle: TinyBundles) -> None:
    """The 8-bit model has the same shape, and weights that differ by a rounding alone: still not the same."""
    outcome = run_apart("net", "simulator", str(tiny_bundle(4).folder), "0", str(tiny_bundle(8).checkpoint))
    assert "differs from" in outcome.problem


def test_a_bundle_alone_gives_the_same_answer_twice(tiny_bundle: TinyBundles) -> None:
    outcome = run_apart("net", "simulator", str(tiny_bundle(4).folder), "0")
    assert outcome.told.startswith("3 tokens run twice give the same answer")


def test_what_is_wrong_with_a_bundle_is_told(tiny_bundle: TinyBundles, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", 4)
    (other / "config.json").write_text((other / "config.json").read_text().replace("448", "512"))
    answer = tmp_path / "answer.json"
    work(str(answer), "net", "simulator", str(tiny_bundle(4).folder), "0", str(other))
    assert "problem" in answer.read_text()
