"""The screens of the recorded machines, to the letter: what a user of such a machine sees."""

import dataclasses
import os
from pathlib import Path

import pytest

from baichuan2_tpu.cli.doctor import draw
from baichuan2_tpu.doctor import Finding, Report, examine
from baichuan2_tpu.doctor.tpu import read_libsophon_version
from baichuan2_tpu.shapes import shape_config
from doubles.recorded_machine import HOST, MACHINES, RecordedMachine
from models.bundle_manifest import bundle_manifest

ARM = dataclasses.replace(HOST, architecture="aarch64", kernels=("neon", "scalar"), python="3.10.14")
HOSTS = {
    "pcie": dataclasses.replace(HOST, sail="3.10.7", toolchain="1.30.2", simulator=True),
    "soc": dataclasses.replace(ARM, sail="3.9.1"),
    "soc_broken": dataclasses.replace(ARM, sail="3.8.0", cache_free_bytes=9_000_000_000),
    "none": HOST,
    "neoverse_n1": dataclasses.replace(ARM, kernels=("neon_dotprod", "neon", "scalar")),
    "neoverse_v1": dataclasses.replace(ARM, kernels=("neon_i8mm", "neon_dotprod", "neon", "scalar")),
}
ECHO = "16 MiB sent, copied on the device and read back unchanged"
NO_RIGHTS = "this machine shows no TPU 0 (/dev/bm-sophon0 or /dev/bm-tpu0)"
COMPUTED = {
    "pcie": [Finding("computes: tpu", "pass", f"{ECHO}; 0 of 14679 MiB in use")],
    "soc": [Finding("computes: tpu", "pass", f"{ECHO}; 0 of 13759 MiB in use")],
    "soc_broken": [Finding("computes: tpu", "fail", NO_RIGHTS)],
    "none": [],
    "neoverse_n1": [],
    "neoverse_v1": [],
}
LOGITS = "a tiny model differs from numpy by 9.4e-03 at 4 bits, 6.0e-03 at 8 bits"
CPU = Finding("computes: cpu", "pass", LOGITS)


def seven(folder: Path, bits: int) -> Path:
    """Write the manifest of a 7B at context 4096: weights, and 2.1 GB of history."""
    folder /= f"Baichuan2-7B-Chat-w{bits}"
    folder.mkdir()
    device_bytes = {4: 6_150_000_000, 8: 9_600_000_000}[bits]
    model = shape_config("baichuan2-7b", 8 if bits == 8 else 4)
    lengths = {"context": 4096, "rows": 4096, "head_rows": (1,)}
    bundle_manifest(model=model, bits=bits, device_bytes=device_bytes, **lengths).write(folder)
    return folder


def examined(name: str, model: Path | None) -> Report:
    report = examine(RecordedMachine(MACHINES / name), HOSTS[name], model=str(model) if model else None)
    return report.with_proofs([CPU, *COMPUTED[name]])


@pytest.mark.parametrize(
    ("name", "bits", "is_ok"),
    [
        ("pcie", 8, True),
        ("soc", 4, True),
        ("soc_broken", 8, False),
        ("none", 0, True),
        ("neoverse_n1", 0, True),
        ("neoverse_v1", 0, True),
    ],
)
def test_screen_is_as_recorded(
    name: str, bits: int, is_ok: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = examined(name, seven(tmp_path, bits) if bits else None)
    draw(report)
    screen = capsys.readouterr().out
    golden = MACHINES / f"{name}.txt"
    if os.environ.get("BAICHUAN2_RECORD") == "1":
        golden.write_text(screen, "utf-8")
    assert screen == golden.read_text("utf-8")
    assert report.is_ok is is_ok


@pytest.mark.parametrize("name", HOSTS)
def test_screen_fits_a_terminal(name: str) -> None:
    lines = (MACHINES / f"{name}.txt").read_text("utf-8").splitlines()
    assert len(lines) <= 40
    assert max(len(line) for line in lines) <= 100


def test_recorded_links_are_links() -> None:
    """A copy that followed them would give a machine without libsophon, and a screen that blames it."""
    assert read_libsophon_version(RecordedMachine(MACHINES / "soc")).value == (0, 5, 1)
