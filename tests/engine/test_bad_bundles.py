"""What is wrong with a bundle, a device or a machine: message and exit code of each on the command line.

Every case is a process of its own: the simulator ends a process on a fault that nobody caught, and what C
libraries write to standard output is seen.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from baichuan2_tpu.engine.device.bmrt_library import HARDWARE_LIBRARIES
from baichuan2_tpu.files import digest_file
from models.tiny_bundle import TinyBundles

COMMAND = (sys.executable, "-c", "from baichuan2_tpu.cli import main; main()")
HAS_SAIL = importlib.util.find_spec("sophon") is not None


@pytest.fixture
def bundle(tiny_bundle: TinyBundles, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to be spoilt."""
    return Path(shutil.copytree(tiny_bundle(4).folder, tmp_path / "bundle"))


def failure(*words: object, **variables: object) -> str:
    """Run a command that must fail with exit code 1 and say nothing but one error; return that line."""
    environment = os.environ | {name: str(value) for name, value in variables.items()}
    done = subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0].removeprefix("error: ")


def answer(bundle: Path, *options: object, **variables: object) -> str:
    """Return the error of asking the bundle something on the simulator."""
    return failure("generate", bundle, "hi", "--engine", "simulator", *options, **variables)


def declare(bundle: Path, **changes: object) -> None:
    """Change what the manifest says."""
    path = bundle / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def bless(bundle: Path, name: str) -> None:
    """Make the manifest agree with a file that was changed."""
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    declare(bundle, files=files | {name: asdict(digest_file(bundle / name))})


def test_a_truncated_bmodel_is_found_by_its_size(bundle: Path) -> None:
    path = bundle / "model.bmodel"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    assert answer(bundle) == (
        f"{path}: has {size // 2} bytes, manifest.json says {size}; copy the bundle again"
    )


def test_a_truncated_bmodel_is_found_without_its_manifest_too(bundle: Path) -> None:
    path = bundle / "model.bmodel"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    bless(bundle, "model.bmodel")
    assert answer(bundle) == f"{path}: has {size // 2} bytes, its header says {size}; copy the file again"


def test_a_missing_file_is_named(bundle: Path) -> None:
    (bundle / "embedding.bin").unlink()
    assert answer(bundle) == (
        f"{bundle / 'embedding.bin'}: is missing; compile the bundle again or copy all of it"
    )


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"layers_per_net": 1}, "block nets is 2, the manifest says 3"),
        ({"head_rows": [1, 4]}, "rows of the head is [1, 4, 16], the manifest says [1, 4]"),
        ({"head_output": "token"}, "output of the head is logits, the manifest says token"),
    ],
)
def test_a_manifest_that_is_not_of_this_bmodel_is_refused(
    bundle: Path, changes: dict[str, object], complaint: str
) -> None:
    declare(bundle, **changes)
    assert answer(bundle) == f"{bundle / 'model.bmodel'}: {complaint}; compile the bundle again"


def test_a_bmodel_for_another_chip_is_refused(bundle: Path) -> None:
    path = bundle / "model.bmodel"
    path.write_bytes(path.read_bytes().replace(b"BM1684X", b"BM1690E"))
    bless(bundle, "model.bmodel")
    assert answer(bundle) == (
        f"{path}: was compiled for bm1690e, the device is a bm1684x; compile it for that"
    )


def test_a_context_longer_than_compiled_names_both(bundle: Path) -> None:
    assert answer(bundle, "--context", 512) == (
        "a context of 512 tokens is asked for, the bundle was compiled for 256; "
        "choose a context of 256 or less, or compile with --context 512"
    )


def test_a_device_that_does_not_exist_is_told_from_those_that_do(bundle: Path) -> None:
    assert answer(bundle, "--device", 3) == "there is no device 3: this machine has 1, counted from 0"


def test_a_machine_without_the_simulator_says_how_to_install_it(bundle: Path, tmp_path: Path) -> None:
    complaint = answer(bundle, XDG_CACHE_HOME=tmp_path / "empty")
    assert complaint.endswith("run: baichuan2 toolchain install, or with --simulator-only")


def test_compiling_without_the_toolchain_says_how_to_install_it(
    tiny_bundle: TinyBundles, tmp_path: Path
) -> None:
    words = ("compile", tiny_bundle(4).checkpoint, tmp_path / "out", "--context", 64)
    assert failure(*words, XDG_CACHE_HOME=tmp_path / "empty").endswith("run: baichuan2 toolchain install")


@pytest.mark.skipif(HARDWARE_LIBRARIES.exists(), reason="this machine has libsophon")
def test_auto_means_hardware_and_names_the_simulator_as_a_choice(bundle: Path) -> None:
    complaint = failure("generate", bundle, "hi")
    assert "libbmrt.so: not found; install libsophon 0.5.1" in complaint or "libbmlib" in complaint
    assert complaint.endswith("or name the simulator with --engine simulator")


@pytest.mark.skipif(HAS_SAIL, reason="this machine has SOPHON-SAIL")
def test_a_machine_without_sail_says_where_to_get_it(bundle: Path) -> None:
    complaint = failure("generate", bundle, "hi", "--engine", "sail")
    assert complaint.startswith(
        "SOPHON-SAIL is not installed for this Python; build 3.9.1 or newer from https:"
    )


@pytest.mark.skipif(HAS_SAIL, reason="this machine has SOPHON-SAIL")
def test_a_sail_without_the_llm_engine_is_too_old(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "sophon").mkdir()
    (tmp_path / "sophon" / "__init__.py").touch()
    (tmp_path / "sophon" / "sail.py").write_text("class Tensor: ...\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    complaint = failure("generate", bundle, "hi", "--engine", "sail", PYTHONPATH=path)
    assert complaint.startswith("SOPHON-SAIL of an unknown version is too old; build 3.9.1 ")


def test_a_bundle_that_lost_its_manifest_is_refused(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    assert answer(bundle) == f"{bundle}: is a bundle without its manifest.json; copy the whole bundle"
