"""A compiled bundle on the command line, as far as it goes without a device."""

import io
import json
import sys
from pathlib import Path

import pytest

from baichuan2_tpu import model as model_module
from baichuan2_tpu.checkpoint.identify import Located
from doubles.fakes import HistoryEngine
from models.fake_bundle import write_fake_bundle
from running.cli_command import Run


@pytest.fixture
def bundle(model: Path, tmp_path: Path) -> Path:
    write_fake_bundle(tmp_path / "bundle", model)
    return tmp_path / "bundle"


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """Open an engine that says it is the simulator in place of a device; returns what was asked for."""
    asked: list[dict[str, object]] = []

    def open_engine(located: Located, **settings: object) -> HistoryEngine:
        asked.append({"path": located.path, **settings})
        engine = HistoryEngine(400)
        engine.name = "bmrt-simulator"
        return engine

    monkeypatch.setattr(model_module, "open_engine", open_engine)
    return asked


SIMULATED = "running on the simulator of a BM1684X: the same tokens, slowly; not a measure of its speed\n"


def test_generate_names_the_engine_and_keeps_the_answer_alone_on_stdout(
    run: Run, bundle: Path, opened: list[dict[str, object]]
) -> None:
    words = ("generate", bundle, "hi", "--engine", "simulator", "--device", 1, "--max-tokens", 3)
    done = run(*words, "--temperature", 0, "--json")
    assert (done.code, done.err) == (0, SIMULATED)
    assert json.loads(done.out)["engine"] == "bmrt-simulator"
    assert [opened[0][name] for name in ("path", "engine", "device", "context")] == [
        bundle,
        "simulator",
        1,
        None,
    ]


def test_chat_runs_on_a_bundle_and_its_stats_name_the_engine(
    run: Run, bundle: Path, opened: list[dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n/stats\n")))
    done = run("chat", bundle, "--engine", "simulator", "--context", 32, "--max-tokens", 2)
    assert done.code == 0
    assert done.err.startswith(SIMULATED)
    assert done.err.endswith("; engine bmrt-simulator\n")
    assert opened[0]["context"] == 32


def test_bench_measures_a_bundle_and_labels_a_simulated_run(
    run: Run, bundle: Path, opened: list[dict[str, object]]
) -> None:
    done = run("bench", bundle, "--engine", "simulator")
    assert done.code == 0
    lines = done.out.splitlines()
    assert lines[0].split(maxsplit=1) == ["engine", "bmrt-simulator: no measure of a chip's speed"]
    figures = json.loads(lines[-1])
    assert (figures["repetitions"], figures["decode_tokens"], len(figures["first_token_ms"])) == (1, 2, 1)
    assert len(opened) == 1


def test_bench_waits_for_prompts_up_to_the_context_on_a_tpu(
    run: Run, bundle: Path, opened: list[dict[str, object]]
) -> None:
    done = run("bench", bundle, "--engine", "bmrt", "--json", "--decode", 3, "--repetitions", 1)
    assert list(json.loads(done.out)["first_token_ms"])[-1] == "64"
    shorter = run("bench", bundle, "--engine", "bmrt", "--json", "--decode", 3, "--prefill", 40)
    assert list(json.loads(shorter.out)["first_token_ms"])[-1] == "40"


def test_bench_of_random_weights_runs_on_the_cpu_alone(run: Run) -> None:
    done = run("bench", "--shape", "tiny", "--engine", "simulator")
    assert done.code == 2
    assert "--shape runs only on the cpu engine" in done.err


def test_info_shows_what_was_compiled(run: Run, bundle: Path) -> None:
    done = run("info", bundle, "--json")
    facts = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert (facts["chip"], facts["head"], facts["context"], facts["rows"]) == ("bm1684x", "w8", 64, 64)
    assert (facts["stages"], facts["head_rows"]) == (["1x64", "16x64"], [1])
    assert facts["history_bytes"] == 64 * 2 * 2 * 128 * 2
    assert facts["disk_bytes"] == sum(
        file.stat().st_size for file in bundle.iterdir() if file.name != "manifest.json"
    )
    lines = run("info", bundle, "--verify").out.splitlines()
    assert "is_verified             yes" in lines
    assert "stages                  1x64 16x64" in lines
    assert "tools                   tpu_mlir 1.30.2" in lines


def test_a_truncated_bmodel_is_named_with_both_sizes(run: Run, bundle: Path) -> None:
    (bundle / "model.bmodel").write_bytes(b"no bmodel")
    done = run("info", bundle)
    complaint = f"{bundle / 'model.bmodel'}: has 9 bytes, manifest.json says 900; copy the bundle again"
    assert (done.code, done.out, done.err) == (1, "", f"error: {complaint}\n")


def test_a_changed_file_of_the_same_size_is_found_by_verify(run: Run, bundle: Path) -> None:
    (bundle / "embedding.bin").write_bytes(b"x" * 100)
    assert run("info", bundle).code == 0
    done = run("info", bundle, "--verify")
    assert done.code == 1
    assert "embedding.bin: its sha256 is not that of manifest.json; copy the bundle again" in done.err


def test_a_manifest_that_is_damaged_is_named(run: Run, bundle: Path) -> None:
    values = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**values, "colour": "red"}))
    done = run("info", bundle)
    assert (done.code, done.out) == (1, "")
    assert "manifest.json: the key 'colour' is unknown; compile the bundle again" in done.err


def test_a_context_longer_than_compiled_is_refused_with_both_numbers(run: Run, bundle: Path) -> None:
    done = run("info", bundle, "--context", 128)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: a context of 128 tokens is asked for, the bundle was compiled for 64; "
        "choose a context of 64 or less, or compile with --context 128\n"
    )


def test_a_bundle_is_no_source_for_quantising(run: Run, bundle: Path, tmp_path: Path) -> None:
    done = run("quantize", bundle, tmp_path / "out")
    assert done.code == 1
    assert "is quantised already; name the float checkpoint it was made from" in done.err


def test_verify_is_for_bundles(run: Run, model: Path) -> None:
    done = run("info", model, "--verify")
    assert done.code == 2
    assert "--verify is for a compiled bundle" in done.err
