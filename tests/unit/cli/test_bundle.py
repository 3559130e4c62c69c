"""A compiled bundle on the command line, as far as it goes without a device."""

import json
from pathlib import Path

import pytest

from cli_command import Run
from fake_bundle import write_fake_bundle


@pytest.fixture
def bundle(model: Path, tmp_path: Path) -> Path:
    write_fake_bundle(tmp_path / "bundle", model)
    return tmp_path / "bundle"


def test_info_shows_what_was_compiled(run: Run, bundle: Path) -> None:
    done = run("info", bundle, "--json")
    facts = json.loads(done.out)
    assert (done.code, done.err) == (0, "")
    assert (facts["chip"], facts["head"], facts["prefill"], facts["context"]) == ("bm1684x", "w8", [16], 64)
    assert facts["kv_cache_bytes"] == 64 * 2 * 2 * 128 * 2
    assert facts["disk_bytes"] == sum(
        file.stat().st_size for file in bundle.iterdir() if file.name != "manifest.json"
    )
    lines = run("info", bundle, "--verify").out.splitlines()
    assert "is_verified             yes" in lines
    assert "prefill                 16" in lines
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
    assert "manifest.json: has other keys than it should: colour; compile the bundle again" in done.err


def test_a_context_longer_than_compiled_is_refused_with_both_numbers(run: Run, bundle: Path) -> None:
    done = run("info", bundle, "--context", 128)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        "error: a context of 128 tokens is asked for, the bundle was compiled for 64; "
        "use --context 64 or less, or compile with --context 128\n"
    )


def test_a_bundle_is_no_source_for_quantising(run: Run, bundle: Path, tmp_path: Path) -> None:
    done = run("quantize", bundle, tmp_path / "out")
    assert done.code == 1
    assert "is quantised already; name the float checkpoint it was made from" in done.err


def test_verify_is_for_bundles(run: Run, model: Path) -> None:
    done = run("info", model, "--verify")
    assert done.code == 2
    assert "--verify is for a compiled bundle" in done.err
