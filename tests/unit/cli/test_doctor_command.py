"""``baichuan2 doctor`` on a recorded machine: its screen, its JSON, its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from baichuan2_tpu import doctor
from doubles.recorded_machine import HOST, MACHINES, RecordedMachine
from models.fake_bundle import write_fake_bundle
from running.cli_command import Run


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the command find itself on a recorded machine; what computes on a device is not asked for."""

    def move(name: str) -> None:
        monkeypatch.setattr(doctor, "Machine", lambda: RecordedMachine(MACHINES / name))
        monkeypatch.setattr(doctor.Host, "here", lambda: HOST)

    return move


def test_a_machine_without_tpu_is_well(run: Run, on: Callable[[str], None]) -> None:
    on("none")
    outcome = run("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0].startswith("pass system         Debian GNU/Linux 12")
    assert lines[-2].startswith("pass computes: cpu  a tiny model differs from numpy by ")
    assert lines[-1] == "failed: 0, warnings: 0"


def test_json_is_one_object(run: Run, on: Callable[[str], None]) -> None:
    on("none")
    outcome = run("doctor", "--json")
    assert outcome.out.count("\n") == 1
    report = json.loads(outcome.out)
    assert (outcome.code, report["is_ok"], report["model"]) == (0, True, None)
    assert [one["name"] for one in report["findings"]][-2:] == ["tpu", "computes: cpu"]


def test_a_model_is_judged_with_the_machine(run: Run, on: Callable[[str], None], model: Path) -> None:
    on("none")
    outcome = run("doctor", model, "--context", 32)
    assert outcome.code == 0
    assert (
        f"pass model          {model.name}: quantised checkpoint, 2 layers of 4 bits, context 32"
        in outcome.out
    )


def test_a_model_that_is_not_there_fails(run: Run, on: Callable[[str], None]) -> None:
    on("none")
    outcome = run("doctor", "nowhere")
    assert outcome.code == 1
    assert "fail model          'nowhere' is neither a path that exists" in outcome.out
    assert outcome.out.endswith("failed: 1, warnings: 0\n")


def test_a_checkpoint_without_its_bundle_is_wrong_usage(run: Run) -> None:
    outcome = run("doctor", "--checkpoint", ".")
    assert outcome.code == 2
    assert "--checkpoint needs the bundle" in outcome.err


def test_a_checkpoint_beside_another_one_is_wrong_usage(
    run: Run, on: Callable[[str], None], model: Path
) -> None:
    # It was left out of the report without a word.
    on("none")
    outcome = run("doctor", model, "--checkpoint", model)
    assert (outcome.code, outcome.out) == (2, "")
    assert "--checkpoint needs a bundle that was compiled from it; MODEL is not one" in outcome.err


def test_a_checkpoint_that_is_not_there_is_wrong_usage_without_a_tpu_too(
    run: Run, on: Callable[[str], None], model: Path, tmp_path: Path
) -> None:
    on("none")
    write_fake_bundle(tmp_path / "bundle", model)
    outcome = run("doctor", tmp_path / "bundle", "--checkpoint", tmp_path / "absent")
    assert (outcome.code, outcome.out) == (2, "")
    assert "Invalid value for '--checkpoint'" in outcome.err
    assert (
        "model          bundle: bundle, 2 layers"
        in run("doctor", tmp_path / "bundle", "--checkpoint", model).out
    )


def test_this_machine_is_examined(run: Run) -> None:
    """Whatever it is: nothing may crash, and the processor computes."""
    outcome = run("doctor", "--json")
    findings = {one["name"]: one["status"] for one in json.loads(outcome.out)["findings"]}
    assert outcome.code in (0, 1)
    assert findings["computes: cpu"] == findings["python"] == "pass"
