import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize
from gguf.quants import quantize as quantize_blocks
from tokenizers import Tokenizer

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.formats.gguf_file import GgufFile
from baichuan2_tpu.checkpoint.identify import Located, identify
from baichuan2_tpu.checkpoint.packing import dequantize as dequantize_linear
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize import quantize
from models.tiny_checkpoint import alibi_config, float_weights, rope_config
from models.tiny_gguf import BPE, write_gguf

CONFIG = rope_config(
    kv_heads=2, is_head_normalized=False, is_head_tied=True, vocabulary_size=264, norm_eps=0.5
)
Entries = Mapping[str, object]
Weights = Mapping[str, np.ndarray]
F32 = GGMLQuantizationType.F32


def write(
    path: Path, weights: Mapping[str, np.ndarray] | None = None, entries: Entries | None = None
) -> Path:
    """Write a llama of Q8_0; entries are named without "llama."."""
    changes = {f"llama.{key}": value for key, value in (entries or {}).items()}
    weights = float_weights(CONFIG, 0) if weights is None else weights
    return write_gguf(path, CONFIG, weights, entries=BPE | changes)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        FloatCheckpoint.open(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_reads_as_llama_with_q_and_k_in_hugging_face_order(tmp_path: Path) -> None:
    weights = float_weights(CONFIG, 5)
    checkpoint = FloatCheckpoint.open(write(tmp_path / "m.gguf", weights))
    assert checkpoint.config == replace(CONFIG, vocabulary_size=320)  # padded
    assert checkpoint.files == (tmp_path / "m.gguf",)
    for stored_name, tensor in weights.items():
        name, expected = stored_name.removesuffix(".weight"), tensor
        if tensor.ndim > 1:
            kind = GGMLQuantizationType.Q8_0
            expected = dequantize(quantize_blocks(tensor, kind), kind)
        np.testing.assert_array_equal(checkpoint.read(name)[: len(expected)], expected, err_msg=name)
        np.testing.assert_array_equal(checkpoint.read(name, 3, 9), expected[3:9], err_msg=name)
        checkpoint.release(name)
    np.testing.assert_array_equal(checkpoint.read("lm_head"), checkpoint.read("model.embed_tokens"))


@pytest.mark.parametrize("kind", [F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16])
def test_float_weights_are_read_as_they_are(tmp_path: Path, kind: GGMLQuantizationType) -> None:
    weights = float_weights(CONFIG, 5)
    checkpoint = FloatCheckpoint.open(write_gguf(tmp_path / "m.gguf", CONFIG, weights, kind=kind))
    assert not checkpoint.notices
    for name, tensor in weights.items():
        is_half = kind == GGMLQuantizationType.F16 and tensor.ndim > 1
        expected = tensor.astype(np.float16) if is_half else tensor
        values = checkpoint.read(name.removesuffix(".weight"))[: len(expected)]  # without padding
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_a_gguf_file_quantises_with_its_tokenizer_and_greedy_settings(tmp_path: Path) -> None:
    weights, notices = float_weights(CONFIG, 5), list[str]()
    quantize(write(tmp_path / "m.gguf", weights), tmp_path / "q", bits=8, notice=notices.append)
    assert notices == [
        f"{tmp_path}/m.gguf holds a model, already quantised (Q8_0; 8.50 bits per weight); it is quantised a "
        "second time, which loses more than quantising the original checkpoint: measure it with baichuan2 "
        "evaluate"
    ]
    checkpoint = QuantizedCheckpoint(tmp_path / "q")
    restored = dequantize_linear(checkpoint.linear("model.layers.1.self_attn.q_proj"))
    expected = weights["model.layers.1.self_attn.q_proj.weight"]
    error = np.abs(restored - expected).max()
    assert error < 0.01, f"largest error {error}, weights reach {np.abs(expected).max()}"
    settings = json.loads((tmp_path / "q" / "generation_config.json").read_text())
    assert settings == {"do_sample": False, "repetition_penalty": 1.0, "bos_token_id": 1, "eos_token_id": [2]}
    assert Tokenizer.from_file(str(tmp_path / "q" / "tokenizer.json")).encode("<|im_end|>").ids == [2]


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    checkpoint = FloatCheckpoint.open(write(tmp_path / "m.gguf"))
    monkeypatch.setattr("gguf.quants.dequantize", refuse)
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' is Q8_0, which the gguf library cannot"):
        checkpoint.read("model.embed_tokens")


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    weights = float_weights(rope_config(vocabulary_size=264, kv_heads=2), 0)
    assert not FloatCheckpoint.open(write(tmp_path / "m.gguf", weights)).config.is_head_tied


def open_baichuan(path: Path, config: ModelConfig) -> tuple[FloatCheckpoint, dict[str, np.ndarray]]:
    weights = float_weights(config, 3)
    write_gguf(path, config, weights, architecture="baichuan", kind=F32)
    return FloatCheckpoint.open(path), {name.removesuffix(".weight"): w for name, w in weights.items()}


def test_baichuan_is_read_with_its_rows_in_order(tmp_path: Path) -> None:
    """It was refused: general.architecture is 'baichuan', allowed is 'llama'."""
    config = rope_config(is_head_normalized=False, vocabulary_size=264, norm_eps=0.5)
    checkpoint, weights = open_baichuan(tmp_path / "m.gguf", config)
    assert checkpoint.config == replace(config, vocabulary_size=320)  # padded
    for name, expected in weights.items():
        np.testing.assert_array_equal(checkpoint.read(name)[: len(expected)], expected, err_msg=name)


def test_baichuan_of_40_layers_is_a_13b_with_alibi(tmp_path: Path) -> None:
    config = alibi_config(layers=40, is_head_normalized=False, vocabulary_size=264, norm_eps=0.5)
    checkpoint, weights = open_baichuan(tmp_path / "m.gguf", config)
    assert checkpoint.config == replace(config, vocabulary_size=320)  # padded
    name = "model.layers.39.self_attn.k_proj"
    np.testing.assert_array_equal(checkpoint.read(name), weights[name])


def test_the_head_of_baichuan2_is_normalised_and_version_1_has_a_plain_one(tmp_path: Path) -> None:
    tokenizer = BPE | {"baichuan.vocab_size": 125_696}
    config = rope_config(hidden_size=32, intermediate_size=32, heads=1, kv_heads=1, layers=1)
    config = replace(config, vocabulary_size=125_696)
    path = write_gguf(
        tmp_path / "m.gguf", config, float_weights(config, 0), architecture="baichuan", entries=tokenizer
    )
    checkpoint = FloatCheckpoint.open(path)
    assert checkpoint.config.is_head_normalized
    np.testing.assert_allclose(np.square(checkpoint.read("lm_head", 0, 9)).sum(axis=1), 1, rtol=1e-6)
    config = replace(config, vocabulary_size=264, is_head_normalized=False)
    assert not open_baichuan(tmp_path / "v1.gguf", config)[0].config.is_head_normalized


def test_another_architecture_is_refused_with_what_the_file_is(tmp_path: Path) -> None:
    origin = {"general.name": "Qwen2 7B", "general.quantized_by": "somebody"}
    path = write_gguf(tmp_path / "m.gguf", CONFIG, {}, architecture="qwen2", entries=BPE | origin)
    assert refusal(path) == (
        f"{path}: holds the model 'Qwen2 7B', quantised by 'somebody': general.architecture is 'qwen2', "
        "allowed are llama and baichuan; run it with llama.cpp, or take a Baichuan or plain Llama model"
    )


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"expert_count": 8}, "it is a mixture of 8 experts"),
        ({"rope.scaling.type": "yarn"}, "its rotary positions are scaled ('yarn', factor 1.0)"),
        (
            {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
            "its rotary positions are scaled ('linear', factor 4.0)",
        ),
        ({"rope.scale_linear": 2.0}, "its rotary positions are scaled ('linear', factor 2.0)"),
    ],
)
def test_what_computes_something_else_is_refused(
    tmp_path: Path, entries: dict[str, object], message: str
) -> None:
    assert message in refusal(write(tmp_path / "m.gguf", entries=entries))


def test_scaling_that_scales_nothing_is_none(tmp_path: Path) -> None:
    for number, entries in enumerate(({"rope.scaling.type": "none"}, {"rope.scaling.factor": 1.0})):
        FloatCheckpoint.open(write(tmp_path / f"{number}.gguf", entries=entries))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rope_freqs.weight", "its rotary positions are scaled as Llama 3.1's are"),
        ("blk.0.attn_q.bias", "it has biases ('blk.0.attn_q.bias')"),
    ],
)
def test_tensors_of_other_computations_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr("models.tiny_gguf.gguf_name", lambda _: name)
    path = write_gguf(tmp_path / "m.gguf", CONFIG, {"some.extra.weight": np.ones(32, "f4")})
    assert message in refusal(path)


def test_an_adapter_in_gguf_form_is_told_apart(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", CONFIG, {}, entries=BPE | {"general.type": "adapter"})
    assert "general.type 'adapter', allowed is 'model'; merge the PEFT adapter that it" in refusal(path)
    path = write_gguf(tmp_path / "n.gguf", CONFIG, {}, entries=BPE | {"general.type": "mmproj"})
    assert "general.type 'mmproj', allowed is 'model'; name the file of the model" in refusal(path)


def test_the_end_of_a_turn_ends_an_answer_too(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        CONFIG,
        float_weights(CONFIG, 0),
        entries=BPE | {"tokenizer.ggml.eot_token_id": 0},
    )
    assert FloatCheckpoint.open(path).config.eos_ids == (2, 0)


def test_missing_metadata_and_tensors_are_named(tmp_path: Path) -> None:
    assert "'intermediate_size'" in refusal(write(tmp_path / "m.gguf", {}, {"feed_forward_length": None}))
    weights = float_weights(CONFIG, 0)
    del weights["model.layers.1.self_attn.k_proj.weight"]
    path = write(tmp_path / "n.gguf", weights)
    assert "tensor 'model.layers.1.self_attn.k_proj.weight' of shape (64, 128) is missing" in refusal(path)


def test_a_tensor_of_no_model_is_named(tmp_path: Path) -> None:
    weights = float_weights(CONFIG, 0) | {"model.layers.7.mlp.up_proj.weight": np.ones((2, 32), "f4")}
    assert "tensor 'model.layers.7.mlp.up_proj.weight' is not part" in refusal(
        write(tmp_path / "m.gguf", weights)
    )


@pytest.mark.parametrize("size", [0, 3, 20, 200, 5000, -7])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = write(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:size])
    assert "is not a readable GGUF file" in refusal(path)


def test_text_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    """It ended in a traceback of the library's."""
    path = write(tmp_path / "m.gguf")
    content = path.read_bytes()
    assert content.count(b"smollm") == 1
    path.write_bytes(content.replace(b"smollm", b"\xff" * 6))
    with pytest.raises(CheckpointError, match=r"is not a readable GGUF file \('utf-8' codec"):
        GgufFile(path)


def split(directory: Path) -> list[Path]:
    write_gguf(directory / "m.gguf", CONFIG, float_weights(CONFIG, 5), split_max_tensors=7)
    return sorted(directory.glob("m-*-of-00003.gguf"))


def test_a_split_model_is_read_by_the_name_of_any_part_or_its_folder(tmp_path: Path) -> None:
    """Its first part alone was read, and a tensor was missing."""
    parts = split(tmp_path)
    assert len(parts) == 3
    whole = FloatCheckpoint.open(write(tmp_path / "whole.gguf", float_weights(CONFIG, 5)))
    (tmp_path / "whole.gguf").rename(tmp_path / "whole.of-another-folder")
    for path in (*parts, tmp_path):
        assert identify(path) == Located(parts[0], "gguf")
        checkpoint = FloatCheckpoint.open(path)
        assert checkpoint.files == tuple(parts)
        for name in ("model.embed_tokens", "model.layers.1.self_attn.q_proj", "model.norm"):
            np.testing.assert_array_equal(checkpoint.read(name), whole.read(name), err_msg=name)
            checkpoint.release(name)


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    parts = split(tmp_path)
    parts[1].unlink()
    with pytest.raises(CheckpointError) as caught:
        identify(parts[0])
    assert str(caught.value) == (
        f"{parts[1]}: is not there, and the model is split into 3 files; fetch all of them into one folder"
    )


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    parts = split(tmp_path)
    alone = tmp_path / "renamed.gguf"
    alone.write_bytes(parts[0].read_bytes())
    assert "is one of 3 parts of a model, which are called NAME-00001-of-0000N.gguf; 1 found" in refusal(
        alone
    )
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(CheckpointError, match=r"m-00003-of-00003\.gguf: tensor '.*' is in .*00002.* too"):
        FloatCheckpoint.open(parts[0])
    (tmp_path / "other").mkdir()
    write_gguf(
        tmp_path / "other" / "m.gguf", CONFIG, {"model.layers.7.mlp.up_proj.weight": np.ones((2, 32), "f4")}
    )
    parts[1].write_bytes((tmp_path / "other" / "m.gguf").read_bytes())
    assert "the model has 20 tensors, its 3 files hold 14" in refusal(parts[0])


def test_of_several_models_in_a_folder_one_is_to_be_named(tmp_path: Path) -> None:
    split(tmp_path)
    (tmp_path / "a.gguf").touch()
    with pytest.raises(CheckpointError) as caught:
        identify(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: holds 2 GGUF models (a.gguf, m-00001-of-00003.gguf); name one of the files"
    )


def test_a_split_model_quantises_as_the_whole_one(tmp_path: Path) -> None:
    parts = split(tmp_path)
    write(tmp_path / "whole.gguf", float_weights(CONFIG, 5))
    quantize(parts[2], tmp_path / "a", bits=4)
    quantize(tmp_path / "whole.gguf", tmp_path / "b", bits=4)
    contents = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "ab"]
    assert contents[0] == contents[1]
