"""A bundle is opened only where its files, its manifest and its nets say the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.open_bundle import open_bundle
from baichuan2_tpu.errors import ArtifactError, BackendError, ContextLengthError
from baichuan2_tpu.files import FileDigest, digest_file
from baichuan2_tpu.manifest import Manifest, Stage
from doubles.numpy_device import NumpyDevice
from models.random_model import float_weights, random_weights
from models.reference import reference_logits

MODEL = random_weights("grouped", 4)
FLOATS = float_weights(MODEL)
CONTEXT = 32
MANIFEST = Manifest(
    model=MODEL.config,
    bits=4,
    head="w8",
    head_output="logits",
    embedding="disk",
    dtype="float16",
    context=CONTEXT,
    rows=CONTEXT,
    stages=(Stage(1, CONTEXT), Stage(16, CONTEXT)),
    head_rows=(1,),
    layers_per_net=1,
    group_size=64,
    devices=1,
    chip="bm1684x",
    bmodel="model.bmodel",
    device_bytes=1000,
    source="none",
    tools={},
    costs=(),
    files={},
)


class Opener:
    """Opens a numpy device and remembers it."""

    def __init__(self, **options: Any) -> None:
        self.options = options
        self.device: NumpyDevice | None = None
        self.asked: list[tuple[Path, int]] = []

    def __call__(self, bmodel: Path, reserve_bytes: int) -> NumpyDevice:
        self.asked.append((bmodel, reserve_bytes))
        self.device = NumpyDevice(MODEL.config, FLOATS, context=CONTEXT, **self.options)
        return self.device


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle whose manifest has these changes, and return its folder."""

    def write_bundle(**changes: Any) -> Path:
        FLOATS["model.embed_tokens.weight"].astype(np.float16).tofile(tmp_path / "embedding.bin")
        (tmp_path / "model.bmodel").write_bytes(b"nets")
        files = {path.name: digest_file(path) for path in tmp_path.iterdir()}
        replace(MANIFEST, **({"files": files} | changes)).write(tmp_path)
        return tmp_path

    return write_bundle


@pytest.mark.parametrize("place", ["disk", "device"])
def test_an_opened_bundle_computes(write: Callable[..., Path], place: str) -> None:
    folder = write(embedding=place)
    opener = Opener(has_embedding=place == "device")
    with open_bundle(folder, opener) as engine, engine.open_sequence() as sequence:
        assert isinstance(engine, BmodelEngine)
        logits = engine.forward([Chunk(sequence, [1, 2, 3], 3)])[0]
    np.testing.assert_allclose(
        logits, reference_logits(MODEL.config, FLOATS, [1, 2, 3], np.float16), atol=0.01
    )
    ids_bytes = 17 * 4 if place == "device" else 0
    assert opener.asked == [(folder / "model.bmodel", MODEL.config.vocabulary_size * 4 + ids_bytes)]
    assert opener.device is not None
    assert opener.device.is_closed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": replace(MODEL.config, layers=3)}, "layers is 2, the manifest says 3"),
        ({"rows": 31}, "rows of history is 32, the manifest says 31"),
        ({"layers_per_net": 2}, "block nets is 2, the manifest says 1"),
        ({"head_rows": (1, 16)}, r"rows of the head is \[1\], the manifest says \[1, 16\]"),
        (
            {"stages": (Stage(1, 32), Stage(8, 32), Stage(16, 32))},
            r"stages is \[\(1, 32\), \(16, 32\)\], the manifest says \[\(1, 32\), \(8, 32\)",
        ),
        ({"head_output": "token"}, "output of the head is logits, the manifest says token"),
        ({"dtype": "bfloat16"}, "dtype is float16, the manifest says bfloat16"),
        ({"embedding": "device"}, "has an embedding is False, the manifest says True"),
    ],
)
def test_nets_that_differ_from_the_manifest_are_named_and_the_device_is_closed(
    write: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    opener = Opener()
    with pytest.raises(ArtifactError, match=rf"model\.bmodel: {message}"):
        open_bundle(write(**changes), opener)
    assert opener.device is not None
    assert opener.device.is_closed


@pytest.mark.parametrize("output", ["token", "sample"])
def test_a_head_that_tells_no_vocabulary_is_taken_as_the_manifest_says(
    write: Callable[..., Path], output: str
) -> None:
    with open_bundle(write(head_output=output), Opener(head=output)) as engine:
        assert engine.candidates < engine.config.vocabulary_size


def test_another_vocabulary_in_the_head_is_found(write: Callable[..., Path]) -> None:
    folder = write()
    rows = MODEL.config.vocabulary_size - 1
    with (folder / "embedding.bin").open("r+b") as file:
        file.truncate(rows * MODEL.config.hidden_size * 2)
    folder = write_again(folder, model=replace(MODEL.config, vocabulary_size=rows))
    with pytest.raises(ArtifactError, match="vocabulary is 320, the manifest says 319"):
        open_bundle(folder, Opener())


def write_again(folder: Path, **changes: Any) -> Path:
    """Change the manifest of a bundle, and its digests to the files as they are."""
    files = {name: digest_file(folder / name) for name in ("embedding.bin", "model.bmodel")}
    replace(Manifest.read(folder), files=files, **changes).write(folder)
    return folder


def test_an_embedding_of_another_size_is_named(write: Callable[..., Path]) -> None:
    folder = write()
    (folder / "embedding.bin").write_bytes(bytes(100))
    with pytest.raises(
        ArtifactError, match=r"embedding\.bin: has 100 bytes, \[320, 144\] of float16 take 92160"
    ):
        open_bundle(write_again(folder), Opener())


def test_small_files_are_compared_with_their_digest(write: Callable[..., Path]) -> None:
    folder = write()
    (folder / "model.bmodel").write_bytes(b"stem")
    with pytest.raises(ArtifactError, match=r"model\.bmodel: its sha256 is not that of manifest\.json"):
        open_bundle(folder, Opener())


def test_large_files_are_compared_by_size_alone(write: Callable[..., Path]) -> None:
    folder = write()
    large = 2 << 20
    (folder / "model.bmodel").write_bytes(bytes(large))
    files = {
        "model.bmodel": FileDigest(large, "not looked at"),
        "embedding.bin": digest_file(folder / "embedding.bin"),
    }
    replace(MANIFEST, files=files).write(folder)
    opener = Opener()
    with open_bundle(folder, opener) as engine:
        assert engine.max_context == CONTEXT
    assert [bmodel.stat().st_size for bmodel, _ in opener.asked] == [large]


def test_a_bundle_for_several_devices_is_refused(write: Callable[..., Path]) -> None:
    with pytest.raises(BackendError, match="was compiled for 2 devices, this engine drives one"):
        open_bundle(write(devices=2), Opener())


def test_a_context_longer_than_compiled_is_refused_before_the_device_is_opened(
    write: Callable[..., Path],
) -> None:
    opener = Opener()
    with pytest.raises(ContextLengthError, match="33 tokens is asked for, the bundle was compiled for 32"):
        open_bundle(write(), opener, context=33)
    assert not opener.asked
