"""Checkpoints that are odd but usual are read as what they mean, and the rest is refused in plain words."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import CheckpointError
from models.tiny_checkpoint import (
    float_weights,
    official_tensors,
    rope_config,
    write_bin,
    write_config,
    write_llama_safetensors,
    write_official,
)

LLAMA = rope_config(is_head_normalized=False)
UP = "model.layers.0.mlp.up_proj"
EMBEDDING = "model.embed_tokens.weight"
Tensors = dict[str, NDArray[Any]]


def write_llama(folder: Path, *, shards: int = 1, **config: object) -> Path:
    return write_llama_safetensors(folder, replace(LLAMA, **config), shards=shards)  # pyright: ignore[reportArgumentType]


def change_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = next(iter(sorted(folder.glob("model*.safetensors"))))
    save_file(change(load_file(path)), path)


def check_weights(folder: Path, config: ModelConfig = LLAMA) -> FloatCheckpoint:
    """Check that a checkpoint is read as the weights of seed 0."""
    checkpoint = FloatCheckpoint.open(folder)
    assert checkpoint.config == config
    for name, weights in float_weights(config, 0).items():
        np.testing.assert_array_equal(checkpoint.read(name.removesuffix(".weight")), weights, err_msg=name)
    return checkpoint


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        FloatCheckpoint.open(folder)
    assert "correct the file" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": False, "mlp_bias": False, "pretraining_tp": 1, "use_cache": True},
        {"rope_scaling": {"rope_type": "default"}},
        {"rope_scaling": {"type": "linear", "factor": 1.0}},
        {"rope_scaling": {}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
        {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}},
        {"quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}},
        {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 64, "lm_head": True}},
    ],
)
def test_keys_without_effect_are_passed_over(tmp_path: Path, changes: dict[str, object]) -> None:
    change_config(write_llama(tmp_path / "m"), **changes)
    assert identify(tmp_path / "m").kind == "float"
    check_weights(tmp_path / "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_scaling asks for scaled positions ('llama3', factor 8.0), which baichuan2-tpu does not",
        ),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "('linear', factor 2.0)"),
        ({"rope_scaling": {"type": "yarn", "factor": 1.0}}, "('yarn', factor 1.0)"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, "rope_parameters asks for scaled"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, allowed is 1"),
        ({"model_type": "qwen2"}, "or take a Baichuan or Llama model"),
    ],
)
def test_another_kind_of_model_is_refused_and_never_run_wrongly(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    change_config(write_llama(tmp_path / "m"), **changes)
    assert message in refusal(tmp_path / "m")


def test_a_stored_head_counts_beside_a_config_that_ties_it(tmp_path: Path) -> None:
    change_config(write_llama(tmp_path / "m"), tie_word_embeddings=True)
    check_weights(tmp_path / "m")


def test_shards_are_found_without_their_index(tmp_path: Path) -> None:
    (write_llama(tmp_path / "m", shards=2) / "model.safetensors.index.json").unlink()
    check_weights(tmp_path / "m")
    config = rope_config()
    (write_official(tmp_path / "bin", config) / "pytorch_model.bin.index.json").unlink()
    assert FloatCheckpoint.open(tmp_path / "bin").config == config


def test_one_file_counts_beside_the_index_of_shards_that_are_gone(tmp_path: Path) -> None:
    write_llama(tmp_path / "m")
    stale = {
        name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(float_weights(LLAMA, 0))
    }
    (tmp_path / "m/model.safetensors.index.json").write_text(json.dumps({"weight_map": stale}))
    check_weights(tmp_path / "m")


def test_what_the_files_hold_counts_where_the_index_is_stale(tmp_path: Path) -> None:
    path = write_llama(tmp_path / "m", shards=2) / "model.safetensors.index.json"
    index = json.loads(path.read_text())["weight_map"]
    first, second = sorted(set(index.values()))
    index |= {EMBEDDING: second, "model.layers.7.mlp.up_proj.weight": first}
    path.write_text(json.dumps({"weight_map": index}))
    check_weights(tmp_path / "m")
    path.write_text(json.dumps({"weight_map": index | {"x": "model-00003-of-00003.safetensors"}}))
    check_weights(tmp_path / "m")


def test_a_file_of_any_name_is_the_weights_when_it_is_the_only_one(tmp_path: Path) -> None:
    write_llama(tmp_path / "m")
    (tmp_path / "m/model.safetensors").rename(tmp_path / "m/gptq_model-4bit-128g.safetensors")
    save_file({"x": np.zeros(1)}, tmp_path / "m/adapter_model.safetensors")
    check_weights(tmp_path / "m")


def test_the_index_chooses_between_copies_and_leaves_out_what_it_does_not_name(tmp_path: Path) -> None:
    write_llama(tmp_path / "m", shards=2)
    first, second = sorted((tmp_path / "m").glob("model-*.safetensors"))
    extra = {"model.layers.9.mlp.up_proj.weight": np.zeros((4, 4), np.float32)}
    save_file(load_file(second) | {EMBEDDING: np.zeros((320, 128), np.float32)} | extra, second)
    assert EMBEDDING in load_file(first)
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "m/model.safetensors")
    check_weights(tmp_path / "m")


def test_missing_shards_are_counted(tmp_path: Path) -> None:
    write_llama(tmp_path / "m", shards=3)
    (tmp_path / "m/model-00002-of-00003.safetensors").unlink()
    (tmp_path / "m/model.safetensors.index.json").unlink()
    assert "holds 2 of the 3 files model-*.safetensors; fetch the others" in refusal(tmp_path / "m")
    write_llama(tmp_path / "m", shards=2)
    (tmp_path / "m/model.safetensors.index.json").unlink()
    assert "of several checkpoints and no index that chooses" in refusal(tmp_path / "m")


@pytest.mark.parametrize("prefix", ["module.", "base_model.model.", "_orig_mod.module."])
def test_prefixes_of_trainers_are_taken_off(tmp_path: Path, prefix: str) -> None:
    write_llama(tmp_path / "m")
    change_tensors(tmp_path / "m", lambda t: {f"{prefix}{name}": value for name, value in t.items()})
    check_weights(tmp_path / "m").release(UP)


def test_one_tensor_under_two_names_is_refused(tmp_path: Path) -> None:
    write_llama(tmp_path / "m")
    change_tensors(tmp_path / "m", lambda t: t | {f"module.{EMBEDDING}": t[EMBEDDING]})
    assert "save the model once, without its trainer" in refusal(tmp_path / "m")


def test_one_bin_file_with_prefixes_in_part_of_its_names_is_read(tmp_path: Path) -> None:
    tensors = official_tensors(rope_config(), 0)
    names = [f"module.{name}" if ".layers.1." in name else name for name in tensors]
    write_config(tmp_path, rope_config())
    write_bin(tmp_path / "pytorch_model.bin", dict(zip(names, tensors.values(), strict=True)))
    assert FloatCheckpoint.open(tmp_path).read("model.norm").shape == (128,)


def test_a_vocabulary_that_no_group_divides_is_padded_with_zeros(tmp_path: Path) -> None:
    config = replace(LLAMA, vocabulary_size=323)
    checkpoint = FloatCheckpoint.open(write_llama(tmp_path / "m", vocabulary_size=323))
    assert checkpoint.config == replace(config, vocabulary_size=384)
    for name in ("model.embed_tokens", "lm_head"):
        weights = float_weights(config, 0)[f"{name}.weight"]
        np.testing.assert_array_equal(checkpoint.read(name)[:323], weights)
        assert not checkpoint.read(name)[323:].any()
        np.testing.assert_array_equal(checkpoint.read(name, 320, 340), checkpoint.read(name)[320:340])
        assert checkpoint.read(name, 350, 360).shape == (10, 128)


def test_weights_that_were_never_gathered_say_so(tmp_path: Path) -> None:
    write_llama(tmp_path / "m")
    change_tensors(tmp_path / "m", lambda t: {name: np.zeros(0, np.float32) for name in t})
    assert "gather the weights of all processes and save again" in refusal(tmp_path / "m")


def test_a_bias_of_zeros_is_passed_over_and_another_refused(tmp_path: Path) -> None:
    write_llama(tmp_path / "m")
    change_tensors(tmp_path / "m", lambda t: t | {f"{UP}.bias": np.zeros(192, np.float32)})
    check_weights(tmp_path / "m")
    change_tensors(tmp_path / "m", lambda t: t | {f"{UP}.bias": np.ones(192, np.float32)})
    assert "is a bias that is not zero" in refusal(tmp_path / "m")
