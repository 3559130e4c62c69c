import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.layout import llama_shapes
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize import quantize
from models.tiny_checkpoint import (
    alibi_config,
    float_weights,
    official_tensors,
    rope_config,
    write_bin,
    write_config,
    write_llama_safetensors,
    write_official,
)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        FloatCheckpoint.open(path)
    return str(caught.value)


@pytest.mark.parametrize("config", [rope_config(), alibi_config()], ids=["rope", "alibi"])
@pytest.mark.parametrize("shards", [1, 3])
def test_official_layout_reads_as_llama_with_its_head_normalised(
    tmp_path: Path, config: ModelConfig, shards: int
) -> None:
    checkpoint = FloatCheckpoint.open(write_official(tmp_path / "m", config, seed=7, shards=shards))
    assert checkpoint.config == config
    assert len(checkpoint.files) == shards
    weights = float_weights(config, seed=7)
    head = weights["lm_head.weight"].astype(np.float64)
    weights["lm_head.weight"] = (head / np.linalg.norm(head, axis=1, keepdims=True)).astype(np.float32)
    for tensor in llama_shapes(config):
        name, expected = tensor.removesuffix(".weight"), weights[tensor]
        np.testing.assert_allclose(checkpoint.read(name), expected, rtol=1e-6, err_msg=name)
        np.testing.assert_array_equal(checkpoint.read(name, 5, 9), checkpoint.read(name)[5:9], err_msg=name)
        np.testing.assert_array_equal(checkpoint.read(name, 60), checkpoint.read(name)[60:], err_msg=name)
        checkpoint.release(name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_llama_layout_reads_as_it_is(tmp_path: Path, dtype: str) -> None:
    config = rope_config(kv_heads=2)
    checkpoint = FloatCheckpoint.open(
        write_llama_safetensors(tmp_path / "m", config, seed=3, shards=2, dtype=dtype)
    )
    assert checkpoint.config == replace(config, is_head_normalized=False)
    tolerance = 1e-3 if dtype == "float16" else 0
    for name, expected in float_weights(config, seed=3).items():
        found = checkpoint.read(name.removesuffix(".weight"))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    config = rope_config(is_head_tied=True)
    checkpoint = FloatCheckpoint.open(write_llama_safetensors(tmp_path / "m", config))
    np.testing.assert_array_equal(checkpoint.read("lm_head"), checkpoint.read("model.embed_tokens"))
    assert "model.embed_tokens.weight" in checkpoint.describe("lm_head")


def test_a_row_of_zeros_in_the_head_stays_zero(tmp_path: Path) -> None:
    tensors = official_tensors(rope_config(), 0)
    tensors["lm_head.weight"][3] = 0
    write_config(tmp_path, rope_config())
    write_bin(tmp_path / "pytorch_model.bin", tensors)
    head = FloatCheckpoint.open(tmp_path).read("lm_head")
    assert not head[3].any()
    np.testing.assert_allclose(np.linalg.norm(head[4]), 1, rtol=1e-6)


def test_the_buffer_of_old_transformers_is_ignored(tmp_path: Path) -> None:
    tensors = official_tensors(rope_config(), 0)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(16, np.float32)
    write_config(tmp_path, rope_config())
    write_bin(tmp_path / "pytorch_model.bin", tensors)
    assert FloatCheckpoint.open(tmp_path).config == rope_config()


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = official_tensors(rope_config(), 0)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    write_config(tmp_path, rope_config())
    write_bin(tmp_path / "pytorch_model.bin", tensors)
    expected = f"{tmp_path}: tensor 'model.layers.1.mlp.up_proj.weight' of shape (192, 128) is missing"
    assert expected in refusal(tmp_path)


def test_an_extra_tensor_is_named_with_its_file(tmp_path: Path) -> None:
    tensors = official_tensors(rope_config(), 0) | {"model.layers.2.bias": np.ones(3, np.float32)}
    write_config(tmp_path, rope_config())
    write_bin(tmp_path / "pytorch_model.bin", tensors)
    assert f"{tmp_path}/pytorch_model.bin: tensor 'model.layers.2.bias' is not part" in refusal(tmp_path)


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    write_official(tmp_path, rope_config(), shards=1)
    write_config(tmp_path, rope_config(intermediate_size=256))
    message = refusal(tmp_path)
    assert "tensor 'model.layers.0.mlp.gate_proj.weight' has shape (192, 128)" in message
    assert "config.json asks for (256, 128)" in message


def test_integers_are_no_weights(tmp_path: Path) -> None:
    write_config(tmp_path, rope_config())
    tensors = {name: np.ones(shape, np.int32) for name, shape in llama_shapes(rope_config()).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    assert "is I32, allowed is BF16, F16, F32, F64" in refusal(tmp_path)


def edit_index(change: Callable[[dict[str, object]], object], directory: Path) -> str:
    """Change the index of a sharded checkpoint; return the complaint."""
    write_official(directory, rope_config(), shards=2)
    path = directory / "pytorch_model.bin.index.json"
    values = json.loads(path.read_text())
    changed = change(values["weight_map"])
    path.write_text(json.dumps(values if changed is None else changed))
    return refusal(directory)


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    assert "is not a plain file name" in edit_index(lambda m: m.update({"x": "../x.bin"}), tmp_path)
    assert r"'\x1b[2J\n' is not a plain file name" in edit_index(
        lambda m: m.update({"x": "\x1b[2J\n"}), tmp_path
    )
    assert "the file of 'x' is 1, allowed is a name" in edit_index(lambda m: m.update({"x": 1}), tmp_path)
    assert "has no weight_map" in edit_index(lambda _: {"weight_map": []}, tmp_path)
    assert "holds a list, not a JSON object" in edit_index(lambda _: [1], tmp_path)


def test_a_tensor_in_two_shards_is_refused_where_no_index_chooses(tmp_path: Path) -> None:
    write_official(tmp_path, rope_config(), shards=2)
    second = tmp_path / "pytorch_model-00002-of-00002.bin"
    write_bin(second, official_tensors(rope_config(), 0))
    (tmp_path / "pytorch_model.bin.index.json").unlink()
    assert "is in" in refusal(tmp_path)
    assert "too; keep one of the files" in refusal(tmp_path)


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    write_official(tmp_path, rope_config(), shards=2)
    for shard in tmp_path.glob("*.bin"):
        shard.unlink()
    assert "names pytorch_model-00001-of-00002.bin, which is not there" in refusal(tmp_path)


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    write_official(tmp_path, rope_config(), shards=2)
    shard = tmp_path / "pytorch_model-00002-of-00002.bin"
    shard.write_bytes(shard.read_bytes()[:5000])
    assert f"{shard}: is not a readable zip" in refusal(tmp_path)


def test_what_lies_at_a_path_is_told_apart(tmp_path: Path) -> None:
    source = write_official(tmp_path / "float", rope_config())
    quantize(source, tmp_path / "quantized", bits=8)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert identify(source).kind == "float"
    assert identify(tmp_path / "quantized").kind == "quantized"
    assert identify(tmp_path / "m.gguf").kind == "gguf"
    assert "is quantised already" in refusal(tmp_path / "quantized")


def test_a_path_without_a_checkpoint_says_what_was_looked_for(tmp_path: Path) -> None:
    assert "does not exist, allowed is a directory or a .gguf file" in refusal(tmp_path / "gone")
    (tmp_path / "m.txt").write_text("")
    assert "is a file, allowed is" in refusal(tmp_path / "m.txt")
    assert "holds no config.json" in refusal(tmp_path)
    write_config(tmp_path, rope_config())
    assert "holds neither model.safetensors nor pytorch_model.bin" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "config.json").write_text("{")
    assert "config.json: is not JSON" in refusal(tmp_path)
