"""The proof computes: what it measures is small, and a wrong answer fails it."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.doctor import ProofSettings, find_tpu, prove
from baichuan2_tpu.doctor.need import read_need
from baichuan2_tpu.doctor.proofs import child_process, prove_engines
from baichuan2_tpu.doctor.proofs.child_process import Outcome, run_in_child, work
from baichuan2_tpu.doctor.proofs.prove_net import check_layer, check_twice
from baichuan2_tpu.doctor.proofs.prove_toolchain import SelfCheck
from baichuan2_tpu.engine.device.bmrt_library import HARDWARE_LIBRARIES
from baichuan2_tpu.errors import BackendError, RequestError
from baichuan2_tpu.reference.layer import first_token_logits
from baichuan2_tpu.reference.operations import relative_error
from doubles.fakes import ScriptedEngine
from doubles.recorded_machine import HOST, MACHINES, RecordedMachine
from models.bundle_manifest import bundle_manifest
from models.random_model import SHAPES, float_weights, random_weights
from models.reference import reference_logits

NONE = find_tpu(RecordedMachine(MACHINES / "none"))
SOC = find_tpu(RecordedMachine(MACHINES / "soc"))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_oracle_is_the_definition_for_one_token(shape: str) -> None:
    weights = random_weights(shape, 4)
    expected = reference_logits(weights.config, float_weights(weights), [7])
    assert relative_error(first_token_logits(weights, 7), expected.reshape(-1)) < 1e-6


def test_this_processor_computes() -> None:
    (finding,) = prove(HOST, NONE, ProofSettings())
    assert (finding.name, finding.status) == ("computes: cpu", "pass")


def test_a_wrong_matrix_fails_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    right = prove_engines.first_token_logits
    monkeypatch.setattr(
        prove_engines, "first_token_logits", lambda weights, token: right(weights, token) * 1.1
    )
    assert prove_engines.prove_cpu().status == "fail"


def test_what_is_no_number_is_infinitely_wrong() -> None:
    assert relative_error(np.array([np.nan, 1.0]), np.array([1.0, 1.0])) == float("inf")


def test_a_bundle_is_run_by_every_engine_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle_manifest().write(tmp_path)
    asked: list[tuple[str, ...]] = []

    def run(*words: str) -> Outcome:
        asked.append(words)
        return Outcome(result="well")

    monkeypatch.setattr(prove_engines, "run_in_child", run)
    settings = ProofSettings.of(
        read_need(str(tmp_path)), checkpoint=Path("checkpoint"), device=1, simulator=False
    )
    findings = prove(dataclasses.replace(HOST, sail="3.10.7"), SOC, settings)
    assert [finding.name for finding in findings] == [
        "computes: cpu",
        "computes: tpu",
        "computes: bmrt",
        "computes: sail",
    ]
    assert asked == [
        ("memory", "1"),
        ("net", "bmrt", str(tmp_path), "1", "checkpoint"),
        ("net", "sail", str(tmp_path), "1", "checkpoint"),
    ]


@pytest.mark.parametrize("name", ["demo", "baichuan2-7b-chat", "baichuan2-13b-base"])
def test_a_checkpoint_is_nothing_for_a_tpu(name: str) -> None:
    # A known name counted as needing the TPU, and failed on a machine whose TPU is broken.
    settings = ProofSettings.of(read_need(name), checkpoint=None, device=0, simulator=False)
    assert (settings.compiled, settings.is_tpu_needed) == (None, False)


def test_without_a_checkpoint_the_tpu_is_needed() -> None:
    vendor = read_need("baichuan2-7b-int8-bmodel")
    assert ProofSettings.of(vendor, checkpoint=None, device=0, simulator=False).is_tpu_needed
    assert ProofSettings.of(None, checkpoint=None, device=0, simulator=False).compiled is None


@pytest.mark.skipif(HARDWARE_LIBRARIES.exists(), reason="libsophon is installed")
def test_a_tpu_that_is_not_there_is_told_by_the_child() -> None:
    outcome = run_in_child("memory", "0")
    assert "libbmlib.so.0: not found; install libsophon 0.5.1" in outcome.problem


def test_a_child_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "_TIMEOUT_S", 0.001)
    assert run_in_child("memory", "0").problem == "did not finish within 0.001 s"


def test_an_error_of_ours_is_an_outcome(tmp_path: Path) -> None:
    work(str(tmp_path / "answer.json"), "net", "cpu", str(tmp_path / "none"), "0")
    problem = json.loads((tmp_path / "answer.json").read_text())["problem"]
    assert problem.startswith(f"{tmp_path / 'none'}: does not exist, allowed is a directory")


@pytest.mark.parametrize("is_right", [True, False])
def test_the_simulator_is_asked_for_only_by_name(is_right: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(toolchain: object) -> SelfCheck:
        if not is_right:
            raise BackendError("a simulated layer differs from numpy")
        return SelfCheck(6e-4, 1.5, 11.25)

    monkeypatch.setattr(prove_engines, "find_toolchain", lambda: None)
    monkeypatch.setattr(prove_engines, "check_toolchain", check)
    finding = prove(HOST, NONE, ProofSettings(has_simulator=True))[-1]
    result = "one layer, compiled in 1.5 s and simulated in 11.2 s, differs from numpy by 6.0e-04"
    assert finding.value == (result if is_right else "a simulated layer differs from numpy")
    assert finding.status == ("pass" if is_right else "fail")


def test_a_child_that_dies_is_told_with_its_last_line() -> None:
    outcome = run_in_child("memory", "nonsense")
    last_line = "ValueError: invalid literal"
    assert outcome.problem.startswith(f"the child process ended with code 1; its last line: {last_line}")


def test_a_child_imports_nothing_from_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A json.py in the folder that doctor was called in was run.
    (tmp_path / "json.py").write_text("raise SystemExit('ran the json.py of this folder')")
    root = Path(child_process.__file__).parents[3]
    monkeypatch.setattr("sys.path", ["", str(root), *filter(None, sys.path)])
    monkeypatch.chdir(tmp_path)
    assert run_in_child("memory", "nonsense").problem.startswith(
        "the child process ended with code 1; its last line: ValueError"
    )


def test_an_engine_must_say_the_same_twice() -> None:
    with ScriptedEngine(16) as engine:
        engine.enqueue_ids([1, 1])
        assert check_twice(engine).startswith("the same 3 tokens gave equal logits twice")
        engine.enqueue_ids([1, 2])
        with pytest.raises(BackendError, match="gave different logits for the same 3 tokens"):
            check_twice(engine)


def test_only_a_bundle_has_a_checkpoints_integers(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no manifest"):
        check_layer(tmp_path, tmp_path, lambda *_: pytest.fail("opened"))


def test_a_tpu_that_fails_does_not_fail_a_model_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prove_engines, "run_in_child", lambda *_: Outcome(problem="broken"))
    needed = ProofSettings.of(None, checkpoint=None, device=0, simulator=False)
    idle = ProofSettings.of(read_need("demo"), checkpoint=None, device=0, simulator=False)
    assert [prove(HOST, SOC, settings)[-1].status for settings in (needed, idle)] == ["fail", "warn"]
