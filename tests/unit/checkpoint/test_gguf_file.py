import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import dequantize
from gguf.quants import quantize as quantize_blocks
from tokenizers import Tokenizer

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.formats.gguf_file import GgufFile
from baichuan2_tpu.checkpoint.formats.gguf_tokenizer import check_tokenizer, write_tokenizer
from baichuan2_tpu.checkpoint.packing import dequantize as dequantize_linear
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize import quantize
from models.tiny_checkpoint import float_weights, rope_config

CONFIG = rope_config(
    kv_heads=2, is_head_normalized=False, is_head_tied=True, vocabulary_size=264, norm_eps=0.5
)
GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def gguf_name(name: str) -> str:
    plain = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    name = name.removesuffix(".weight")
    if name in plain:
        return f"{plain[name]}.weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[part]}.weight"


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q and k."""
    rows, columns = weights.shape
    return weights.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def byte_tokens() -> list[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(one) for one in printable] + [chr(0x100 + one) for one in range(256 - len(printable))]


TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_tokens(), "Ġa", "ab", "12", "Ġab", "ba"]
TOKENIZER: dict[str, object] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 3] + [1] * (len(TOKENS) - 3),
    "tokenizer.ggml.merges": ["Ġ a", "a b", "1 2", "Ġa b", "b a"],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.chat_template": "{{ messages }}",
}


def write_gguf(
    path: Path, weights: Mapping[str, np.ndarray], *, architecture: str = "llama", skip: str = ""
) -> Path:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(CONFIG.layers)
    writer.add_context_length(CONFIG.max_context)
    writer.add_embedding_length(CONFIG.hidden_size)
    if skip != "feed_forward_length":
        writer.add_feed_forward_length(CONFIG.intermediate_size)
    writer.add_head_count(CONFIG.heads)
    writer.add_head_count_kv(CONFIG.kv_heads)
    writer.add_layer_norm_rms_eps(CONFIG.norm_eps)
    writer.add_rope_dimension_count(CONFIG.head_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(["Ġ a", "a b", "1 2", "Ġa b", "b a"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, tensor in weights.items():
        if tensor.ndim == 1:
            writer.add_tensor(gguf_name(name), tensor)
            continue
        heads = {"q_proj": CONFIG.heads, "k_proj": CONFIG.kv_heads}.get(name.split(".")[-2])
        stored = tensor if heads is None else permute(tensor, heads)
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(
            gguf_name(name), quantize_blocks(np.ascontiguousarray(stored), kind), raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        FloatCheckpoint.open(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_reads_as_llama_with_q_and_k_in_hugging_face_order(tmp_path: Path) -> None:
    weights = float_weights(CONFIG, 5)
    checkpoint = FloatCheckpoint.open(write_gguf(tmp_path / "m.gguf", weights))
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


def test_a_gguf_file_quantises_with_its_tokenizer_and_greedy_settings(tmp_path: Path) -> None:
    weights = float_weights(CONFIG, 5)
    quantize(write_gguf(tmp_path / "m.gguf", weights), tmp_path / "q", bits=8)
    checkpoint = QuantizedCheckpoint(tmp_path / "q")
    found = dequantize_linear(checkpoint.linear("model.layers.1.self_attn.q_proj"))
    expected = weights["model.layers.1.self_attn.q_proj.weight"]
    error = np.abs(found - expected).max()
    assert error < 0.01, f"largest error {error}, weights reach {np.abs(expected).max()}"
    settings = json.loads((tmp_path / "q" / "generation_config.json").read_text())
    assert settings == {"do_sample": False, "repetition_penalty": 1.0, "bos_token_id": 1, "eos_token_id": [2]}
    assert Tokenizer.from_file(str(tmp_path / "q" / "tokenizer.json")).encode("<|im_end|>").ids == [2]


def test_a_type_that_cannot_be_dequantised_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    checkpoint = FloatCheckpoint.open(write_gguf(tmp_path / "m.gguf", float_weights(CONFIG, 0)))
    monkeypatch.setattr("gguf.quants.dequantize", refuse)
    with pytest.raises(CheckpointError, match=r"'token_embd.weight' is Q8_0, which the gguf library cannot"):
        checkpoint.read("model.embed_tokens")


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    weights = float_weights(rope_config(vocabulary_size=264, kv_heads=2), 0)
    assert not FloatCheckpoint.open(write_gguf(tmp_path / "m.gguf", weights)).config.is_head_tied


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, architecture="baichuan")
    assert "general.architecture is 'baichuan', allowed is 'llama'" in refusal(path)


def test_missing_metadata_and_tensors_are_named(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", {}, skip="feed_forward_length")
    assert "'intermediate_size'" in refusal(path)
    weights = float_weights(CONFIG, 0)
    del weights["model.layers.1.self_attn.k_proj.weight"]
    path = write_gguf(tmp_path / "n.gguf", weights)
    assert "tensor 'model.layers.1.self_attn.k_proj.weight' of shape (64, 128) is missing" in refusal(path)


def test_a_tensor_of_no_model_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    writer_weights = float_weights(CONFIG, 0) | {"model.layers.7.mlp.up_proj.weight": np.ones((2, 32), "f4")}
    assert "tensor 'model.layers.7.mlp.up_proj.weight' is not part" in refusal(
        write_gguf(path, writer_weights)
    )


@pytest.mark.parametrize("size", [0, 3, 20, 200, 5000, -7])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = write_gguf(tmp_path / "m.gguf", float_weights(CONFIG, 0))
    path.write_bytes(path.read_bytes()[:size])
    assert "is not a readable GGUF file" in refusal(path)


def test_the_tokenizer_cuts_and_joins_as_the_metadata_say(tmp_path: Path) -> None:
    check_tokenizer(tmp_path, TOKENIZER)
    write_tokenizer(TOKENIZER, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = {token: i for i, token in enumerate(TOKENS)}
    assert tokenizer.encode("ab ab").ids == [ids["ab"], ids["Ġab"]]
    # smollm cuts every digit on its own, whatever the merges say.
    assert tokenizer.encode("12").ids == [ids["1"], ids["2"]]
    assert tokenizer.encode("<|im_start|>a<|im_end|>").ids == [1, ids["a"], 2]
    assert tokenizer.decode(tokenizer.encode("Ünï 你好\n 12").ids) == "Ünï 你好\n 12"
    settings = (tmp_path / "tokenizer_config.json").read_text()
    assert '"eos_token": "<|im_end|>"' in settings
    assert '"chat_template": "{{ messages }}"' in settings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.model is 'llama', allowed is gpt2"),
        ({"tokenizer.ggml.pre": "qwen2"}, "tokenizer.ggml.pre is 'qwen2', allowed is gpt-2 or smollm"),
        ({"tokenizer.ggml.token_type": [1]}, "264 tokens, 1 token types"),
        ({"tokenizer.ggml.tokens": "text"}, "tokenizer.ggml.tokens is 'text', allowed is a list of str"),
        ({"tokenizer.ggml.merges": [1]}, "tokenizer.ggml.merges is [1], allowed is a list of str"),
        ({"tokenizer.ggml.merges": ["ab"]}, "the merge 'ab' has one part"),
        ({"tokenizer.ggml.merges": ["x\n y"]}, "its tokenizer is damaged"),
        ({"tokenizer.ggml.eos_token_id": 10**9}, "is 1000000000, there are 264 tokens"),
    ],
)
def test_a_tokenizer_that_cannot_be_written_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        check_tokenizer(Path("m.gguf"), TOKENIZER | change)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


def test_text_that_is_not_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    """It ended in a traceback of the library's."""
    path = write_gguf(tmp_path / "m.gguf", float_weights(CONFIG, 0))
    content = path.read_bytes()
    assert content.count(b"smollm") == 1
    path.write_bytes(content.replace(b"smollm", b"\xff" * 6))
    with pytest.raises(CheckpointError, match=r"is not a readable GGUF file \('utf-8' codec"):
        GgufFile(path)
