"""``baichuan2 compile`` as far as it goes without TPU-MLIR: the plan, and what it refuses."""

import json
from pathlib import Path

import pytest

from baichuan2_tpu.checkpoint.identify import Located
from baichuan2_tpu.compile import driver
from baichuan2_tpu.compile.driver import CompileEvent
from baichuan2_tpu.resolve import ResolveSettings
from baichuan2_tpu.toolchain import Toolchain
from models.tiny_bundle import write_tiny_checkpoint
from running.cli_command import Run


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("models") / "tiny", 4)


def test_a_dry_run_says_what_a_bundle_takes_and_makes_nothing(
    run: Run, quantized: Path, tmp_path: Path
) -> None:
    done = run("compile", quantized, tmp_path / "out", "--context", 128, "--dry-run", "--json")
    facts = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert (facts["nets"], facts["launches_per_token"], facts["compiler_calls"]) == (2, 2, 7)
    assert facts["stages"] == ["1x128", "16x128", "32x128", "64x128"]
    assert (facts["context"], facts["rows"], facts["layers_per_net"]) == (128, 128, 4)
    assert (facts["bits"], facts["head"], facts["dtype"]) == (4, "w8", "float16")
    assert facts["peak_disk_bytes"] > facts["bundle_bytes"] > facts["device_bytes"]
    assert facts["device_bytes"] > facts["history_bytes"] == 3 * 2 * 128 * 128 * 2
    assert facts["time_s"] > 0
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_dry_run_for_a_reader_has_one_fact_a_line(run: Run, quantized: Path, tmp_path: Path) -> None:
    words = ("--context", 64, "--stages", "8x64,1x64", "--bits", 16, "--head", "f16", "--dtype", "bf16")
    done = run("compile", quantized, tmp_path / "out", *words, "--dry-run")
    lines = done.out.splitlines()
    assert "stages                  1x64, 8x64" in lines
    assert "dtype                   bfloat16" in lines
    assert any(line.startswith("memory_bytes") and line.endswith(" GB") for line in lines)
    assert any(line.startswith("time_s ") and line.endswith(" s") for line in lines)


def test_rows_and_layers_per_net_can_be_asked_for(run: Run, quantized: Path, tmp_path: Path) -> None:
    words = (
        "--context",
        64,
        "--rows",
        256,
        "--stages",
        "1x256",
        "--layers-per-net",
        2,
        "--dry-run",
        "--json",
    )
    facts = json.loads(run("compile", quantized, tmp_path / "out", *words).out)
    assert (facts["context"], facts["rows"], facts["stages"]) == (64, 256, ["1x256"])
    assert (facts["nets"], facts["launches_per_token"]) == (3, 3)


def test_json_without_a_dry_run_is_a_wrong_usage(run: Run, tmp_path: Path) -> None:
    done = run("compile", "demo", tmp_path / "out", "--json")
    assert (done.code, done.out) == (2, "")
    assert "--json goes with --dry-run; see baichuan2 compile --help" in done.err


def test_stages_that_are_not_pairs_are_a_wrong_usage(run: Run, quantized: Path, tmp_path: Path) -> None:
    done = run("compile", quantized, tmp_path / "out", "--context", 64, "--stages", "16x64,many", "--dry-run")
    assert (done.code, done.out) == (2, "")
    assert "--stages is '16x64,many', allowed are pairs such as 1x512,16x512,64x512" in done.err


def test_a_missing_toolchain_names_the_next_step(run: Run, quantized: Path, tmp_path: Path) -> None:
    done = run("compile", quantized, tmp_path / "out", "--context", 64, "--toolchain", tmp_path / "none")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert not (tmp_path / "out.partial").exists()


def test_a_known_name_is_quantised_first_with_the_bits_asked_for(
    run: Run, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def resolve(name: str, settings: ResolveSettings, **_: object) -> Located:
        asked.append(settings.bits)
        return Located(quantized, "quantized")

    monkeypatch.setattr("baichuan2_tpu.resolve.resolve_model", resolve)
    for bits in ("4", "16"):
        words = ("--context", 64, "--head", "f16", "--bits", bits, "--dry-run", "--json")
        assert json.loads(run("compile", "demo", tmp_path / "out", *words).out)["bits"] == int(bits)
    assert asked == [4, None]


def test_a_build_reports_warns_and_says_where_the_bundle_is(
    run: Run, quantized: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(checkpoint: Path, destination: Path, settings: object, build: object, **named: object) -> None:
        progress = named["progress"]
        assert callable(progress)
        progress(CompileEvent(1, 2, 50, 100))

    monkeypatch.setattr(driver, "compile_bundle", build)
    monkeypatch.setattr("baichuan2_tpu.memory.machine_memory_bytes", lambda: 10**8)
    monkeypatch.setattr("baichuan2_tpu.toolchain.find_toolchain", lambda path: Toolchain(tmp_path, "1.30.2"))
    done = run("compile", quantized, tmp_path / "out", "--context", 64)
    assert (done.code, done.out) == (0, "")
    warning, wrote = done.err.splitlines()
    assert warning.startswith("warning: compiling takes about ")
    assert warning.endswith(" GB of memory, this machine has 0.1 GB; --jobs 1 takes less")
    assert wrote == f"wrote {tmp_path / 'out'}"
