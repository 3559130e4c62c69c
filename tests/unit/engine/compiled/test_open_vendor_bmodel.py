"""A folder with a bmodel and no manifest, as the vendor's files are put together; nothing is loaded."""

from dataclasses import replace
from pathlib import Path

import pytest

from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.engine.compiled.open_vendor_bmodel import open_vendor_bmodel, read_vendor_config
from baichuan2_tpu.engine.registry import CpuSettings, open_engine
from baichuan2_tpu.errors import ArtifactError, CheckpointError, RequestError
from baichuan2_tpu.manifest import MANIFEST_NAME, find_bmodel
from baichuan2_tpu.resolve import resolve_model
from doubles.numpy_device import NumpyDevice
from models.random_model import float_weights, random_weights
from models.tiny_checkpoint import rope_config, write_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "baichuan2-7b_int8_1dev.bmodel").touch()
    (tmp_path / "tokenizer.model").touch()
    return tmp_path


def test_it_is_a_model_where_it_lies(folder: Path) -> None:
    assert find_bmodel(folder) == folder / "baichuan2-7b_int8_1dev.bmodel"
    assert identify(folder).kind == "bmodel"
    assert resolve_model(str(folder), notice=pytest.fail).path == folder


def test_a_manifest_or_weights_beside_the_bmodel_go_first(folder: Path) -> None:
    for name in (MANIFEST_NAME, "model.safetensors", "pytorch_model.bin"):
        (folder / name).touch()
        assert find_bmodel(folder) is None
        (folder / name).unlink()


def test_two_bmodels_in_a_folder_are_named_and_refused(folder: Path) -> None:
    (folder / "baichuan2-7b_int4_1dev.bmodel").touch()
    with pytest.raises(
        ArtifactError,
        match=r"holds 2 bmodels \(baichuan2-7b_int4_1dev.bmodel, baichuan2-7b_int8_1dev.bmodel\)",
    ):
        identify(folder)


def test_the_file_itself_is_no_model(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is one file of a model; name its folder"):
        identify(folder / "baichuan2-7b_int8_1dev.bmodel")


def test_the_cpu_cannot_run_it(folder: Path) -> None:
    with pytest.raises(RequestError, match="is compiled, which the cpu engine cannot run"):
        open_engine(identify(folder), engine="cpu")
    with pytest.raises(RequestError, match="for the cpu engine alone"):
        open_engine(identify(folder), cpu=CpuSettings(threads=2))


def test_it_is_taken_for_the_7b_unless_a_config_is_there(folder: Path) -> None:
    assert (read_vendor_config(folder).layers, read_vendor_config(folder).vocabulary_size) == (32, 125_696)
    write_config(folder, rope_config(layers=3))
    assert read_vendor_config(folder).layers == 3


MODEL = random_weights("rope", 4)
FLOATS = float_weights(MODEL)


def test_nets_without_an_embedding_are_a_part_of_a_bundle(folder: Path) -> None:
    write_config(folder, MODEL.config)
    device = NumpyDevice(MODEL.config, FLOATS, form="converter")
    with pytest.raises(ArtifactError, match="has no net embedding, so it is part of a bundle"):
        open_vendor_bmodel(folder / "baichuan2-7b_int8_1dev.bmodel", lambda _path, _bytes: device)


def test_logits_of_another_vocabulary_are_refused(folder: Path) -> None:
    write_config(folder, replace(MODEL.config, vocabulary_size=999))
    device = NumpyDevice(MODEL.config, FLOATS, form="converter", has_embedding=True)
    with pytest.raises(
        ArtifactError, match=f"vocabulary is {MODEL.config.vocabulary_size}, config.json has 999"
    ):
        open_vendor_bmodel(folder / "baichuan2-7b_int8_1dev.bmodel", lambda _path, _bytes: device)
