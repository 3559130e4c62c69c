"""What the doctor computes on a device, on the simulator: the same calls as on hardware."""

from pathlib import Path

import pytest

from baichuan2_tpu.doctor.proofs.child_process import run_in_child, work
from baichuan2_tpu.toolchain import Toolchain, find_simulator
from models.tiny_bundle import TinyBundles, write_tiny_checkpoint


def test_memory_gives_back_what_it_was_given(toolchain: Toolchain) -> None:
    outcome = run_in_child("memory", "0", str(find_simulator(toolchain.root)))
    assert outcome.problem == ""
    assert outcome.result == "16 MiB sent, copied on the device and read back unchanged"


@pytest.mark.parametrize("bits", [4, 8])
def test_a_layer_agrees_with_its_checkpoint(tiny_bundle: TinyBundles, bits: int) -> None:
    made = tiny_bundle(4 if bits == 4 else 8)
    outcome = run_in_child("net", "simulator", str(made.folder), "0", str(made.checkpoint))
    assert outcome.result.startswith("the first net differs from numpy by ")


def test_a_layer_of_another_checkpoint_is_noticed(tiny_bundle: TinyBundles) -> None:
    """The 8-bit model has the same shape, and weights that differ by a rounding alone: still not the same."""
    folder, checkpoint = tiny_bundle(4).folder, tiny_bundle(8).checkpoint
    outcome = run_in_child("net", "simulator", str(folder), "0", str(checkpoint))
    assert "differs from" in outcome.problem


def test_a_bundle_alone_gives_the_same_answer_twice(tiny_bundle: TinyBundles) -> None:
    outcome = run_in_child("net", "simulator", str(tiny_bundle(4).folder), "0")
    assert outcome.result.startswith("the same 3 tokens gave equal logits twice")


def test_what_is_wrong_with_a_bundle_is_told(tiny_bundle: TinyBundles, tmp_path: Path) -> None:
    other = write_tiny_checkpoint(tmp_path / "other", 4)
    (other / "config.json").write_text((other / "config.json").read_text().replace("448", "512"))
    answer = tmp_path / "answer.json"
    work(str(answer), "net", "simulator", str(tiny_bundle(4).folder), "0", str(other))
    assert "problem" in answer.read_text()
