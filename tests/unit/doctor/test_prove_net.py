"""A layer of a bundle is compared with the integers of its checkpoint, on a device in numpy."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.doctor.proofs.prove_net import check_layer
from baichuan2_tpu.errors import BackendError, RequestError
from baichuan2_tpu.files import digest_file
from baichuan2_tpu.manifest import Manifest, Stage
from doubles.numpy_device import NumpyDevice
from models.bundle_manifest import bundle_manifest
from models.random_model import float_weights
from models.tiny_bundle import write_tiny_checkpoint

CONTEXT = 32
STAGES = (Stage(1, CONTEXT), Stage(16, CONTEXT))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", 4)


@pytest.fixture
def bundle(checkpoint: Path, tmp_path: Path) -> Path:
    weights = QuantizedCheckpoint(checkpoint)
    weights.array("model.embed_tokens").tofile(tmp_path / "embedding.bin")
    manifest: Manifest = bundle_manifest(model=weights.config, context=CONTEXT, rows=CONTEXT, stages=STAGES)
    files = {"embedding.bin": digest_file(tmp_path / "embedding.bin")}
    replace(manifest, files=files).write(tmp_path)
    return tmp_path


def opener(checkpoint: Path, scale: float = 1, layers_per_net: int = 1) -> Callable[[Path, int], NumpyDevice]:
    weights = QuantizedCheckpoint(checkpoint)
    floats = float_weights(weights)
    floats["model.layers.0.mlp.down_proj.weight"] *= np.float32(scale)
    return lambda bmodel, reserve_bytes: NumpyDevice(
        weights.config, floats, context=CONTEXT, layers_per_net=layers_per_net
    )


@pytest.mark.parametrize("layers_per_net", [1, 2])
def test_a_net_with_the_checkpoints_integers_agrees(
    bundle: Path, checkpoint: Path, layers_per_net: int
) -> None:
    result = check_layer(bundle, checkpoint, opener(checkpoint, layers_per_net=layers_per_net))
    assert result.startswith("the first net differs from numpy by ")
    assert result.endswith(", at most 0.02 is allowed")


def test_other_weights_in_one_matrix_are_noticed(bundle: Path, checkpoint: Path) -> None:
    with pytest.raises(BackendError, match="a layer on the device differs from"):
        check_layer(bundle, checkpoint, opener(checkpoint, scale=1.2))


def test_a_checkpoint_of_another_shape_is_refused(bundle: Path, checkpoint: Path) -> None:
    manifest = Manifest.read(bundle)
    replace(manifest, model=replace(manifest.model, layers=4)).write(bundle)
    with pytest.raises(RequestError, match=r"name the checkpoint it was compiled from \(tiny sha256:0\)"):
        check_layer(bundle, checkpoint, opener(checkpoint))
