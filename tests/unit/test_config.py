import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baichuan2_tpu.config import ModelConfig, QuantizationConfig, alibi_slopes
from baichuan2_tpu.errors import CheckpointError
from models.reference import alibi_slopes as reference_slopes
from models.tiny_checkpoint import alibi_config, rope_config

BAICHUAN2_7B: dict[str, object] = {
    "architectures": ["BaichuanForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "model_max_length": 4096,
    "model_type": "baichuan",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "vocab_size": 125_696,
}
BAICHUAN2_13B = {key: value for key, value in BAICHUAN2_7B.items() if key != "max_position_embeddings"} | {
    "hidden_size": 5120,
    "intermediate_size": 13_696,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
}
BAICHUAN_7B = BAICHUAN2_7B | {"architectures": ["BaiChuanForCausalLM"], "vocab_size": 64_000}
QUANTIZED: dict[str, object] = {
    "quant_method": "gptq",
    "bits": 4,
    "group_size": 128,
    "desc_act": False,
    "sym": True,
    "lm_head": True,
}


def test_official_7b_is_rope_with_a_head_still_to_be_normalised() -> None:
    config = ModelConfig.from_json(BAICHUAN2_7B)
    assert (config.position, config.rope_theta, config.max_context) == ("rope", 10_000.0, 4096)
    assert (config.head_size, config.kv_heads, config.layers) == (128, 32, 32)
    assert config.is_head_normalized
    assert config.eos_ids == (2,)


def test_official_13b_is_alibi_with_its_context_under_another_key() -> None:
    config = ModelConfig.from_json(BAICHUAN2_13B | {"model_max_length": 2048})
    assert (config.position, config.max_context, config.is_head_normalized) == ("alibi", 2048, True)


@pytest.mark.parametrize("change", [{}, {"vocab_size": 64_000}, {"architectures": ["BaiChuanForCausalLM"]}])
def test_version_1_has_a_plain_head(change: dict[str, object]) -> None:
    values = (BAICHUAN2_7B | change) if change else BAICHUAN_7B
    assert not ModelConfig.from_json(values).is_head_normalized


def test_an_explicit_position_wins() -> None:
    assert ModelConfig.from_json(BAICHUAN2_7B | {"position_embedding_type": "alibi"}).position == "alibi"


def test_llama_has_a_plain_head_and_its_own_keys() -> None:
    change = {"model_type": "llama", "num_key_value_heads": 8, "head_dim": 64, "rope_theta": 5e5}
    config = ModelConfig.from_json(BAICHUAN2_7B | change | {"tie_word_embeddings": True})
    assert (config.kv_heads, config.head_size, config.rope_theta) == (8, 64, 5e5)
    assert (config.position, config.is_head_normalized, config.is_head_tied) == ("rope", False, True)


def test_rope_parameters_of_transformers_5_are_read() -> None:
    nested = {"rope_type": "default", "rope_theta": 1e6}
    config = ModelConfig.from_json(BAICHUAN2_7B | {"model_type": "llama", "rope_parameters": nested})
    assert config.rope_theta == 1e6


@settings(deadline=None)
@given(
    st.sampled_from([rope_config(), alibi_config()]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, QuantizationConfig(4), QuantizationConfig(8, 128, 4)]),
    st.lists(st.integers(0, 319), max_size=3, unique=True),
)
def test_what_is_written_is_read_back(
    config: ModelConfig,
    is_tied: bool,
    is_normalized: bool,
    quantization: QuantizationConfig | None,
    eos_ids: list[int],
) -> None:
    config = replace(
        config,
        is_head_tied=is_tied,
        is_head_normalized=is_normalized,
        quantization=quantization,
        eos_ids=tuple(eos_ids),
    )
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_folded_rope_model_is_a_llama_and_a_folded_alibi_model_says_it_is_folded() -> None:
    assert replace(rope_config(), is_head_normalized=False).to_json()["model_type"] == "llama"
    values = replace(alibi_config(), is_head_normalized=False).to_json()
    assert (values["model_type"], values["position_embedding_type"]) == ("baichuan", "alibi")
    assert not ModelConfig.from_json(values).is_head_normalized


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "qwen2"}, "'model_type' is 'qwen2', allowed is 'llama' or 'baichuan'"),
        ({"model_type": None}, "'model_type' is None"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu', allowed is 'silu'"),
        (
            {"rope_scaling": {"type": "linear"}},
            "rope_scaling asks for scaled positions ('linear', factor None)",
        ),
        (
            {"rope_parameters": {"rope_type": "llama3"}},
            "rope_parameters asks for scaled positions ('llama3',",
        ),
        ({"hidden_size": 0}, "'hidden_size' is 0, allowed is an integer from 1 to 131072"),
        ({"num_hidden_layers": 10**9}, "is 1000000000, allowed is an integer from 1 to 1024"),
        ({"vocab_size": 10**9}, "'vocab_size' is 1000000000, allowed is an integer from 1 to 2097152"),
        ({"hidden_act": [[]] * 10**6}, "'hidden_act' is [[], [], [], [], [], [], ...], allowed is 'silu'"),
        ({"hidden_size": 4096.0}, "'hidden_size' is 4096.0"),
        ({"num_hidden_layers": True}, "'num_hidden_layers' is True"),
        ({"vocab_size": "64000"}, "'vocab_size' is '64000'"),
        ({"num_attention_heads": 33}, "'num_attention_heads' is 33, allowed is a divisor of the hidden size"),
        ({"num_key_value_heads": 5}, "'num_key_value_heads' is 5, allowed is a divisor of the 32"),
        ({"head_dim": 65}, "'head_dim' is 65, allowed is an even number"),
        ({"rms_norm_eps": 0}, "'rms_norm_eps' is 0, allowed is a number above 0"),
        ({"rms_norm_eps": float("inf")}, "'rms_norm_eps' is inf"),
        ({"tie_word_embeddings": 1}, "'tie_word_embeddings' is 1, allowed is true or false"),
        ({"eos_token_id": 125_696}, "'eos_token_id' is [125696], allowed is null, or token ids"),
        ({"eos_token_id": ["2"]}, "'eos_token_id' is ['2']"),
        ({"quantization_config": 4}, "'quantization_config' is 4, allowed is an object"),
        ({"position_embedding_type": "learned"}, "'position_embedding_type' is 'learned'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        ModelConfig.from_json(BAICHUAN2_7B | change, file="model/config.json")
    assert str(caught.value).startswith("model/config.json: ")
    assert message in str(caught.value)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "rms_norm_eps", "model_type"])
def test_a_missing_key_is_named(key: str) -> None:
    values = {name: value for name, value in BAICHUAN2_7B.items() if name != key}
    with pytest.raises(CheckpointError, match=f"'{key}' is missing"):
        ModelConfig.from_json(values)


def test_a_head_setting_of_another_tool_is_read_through_its_pattern() -> None:
    values = QUANTIZED | {"dynamic": {"+:^lm_head$": {"bits": 8, "group_size": 128}}}
    assert QuantizationConfig.from_json(values) == QuantizationConfig(4, 128, 8)
    assert QuantizationConfig.from_json(QUANTIZED) == QuantizationConfig(4, 128, 4)


def test_the_form_of_the_files_is_told_by_the_format() -> None:
    assert QuantizationConfig.from_json(QUANTIZED).form == 1
    settings = QuantizationConfig(4, 128, 8, "gptq")
    written = settings.to_json()
    assert (written["checkpoint_format"], written["meta"]) == ("gptq_v2", {"head_bits": 8, "method": "gptq"})
    assert QuantizationConfig.from_json(written).form == 2
    assert not {"lm_head", "dynamic"} & written.keys()  # transformers would look for a quantised head


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "awq"}, "'quant_method' is 'awq', allowed is 'gptq'"),
        ({"checkpoint_format": "marlin"}, "is 'marlin', allowed is 'gptq' or 'gptq_v2'"),
        ({"checkpoint_format": "gptq_v2"}, "meta: 'head_bits' is missing, allowed is 4 or 8"),
        ({"checkpoint_format": "gptq_v2", "meta": {"head_bits": 16}}, "'head_bits' is 16, allowed is 4 or 8"),
        ({"checkpoint_format": "gptq_v2", "meta": 8}, "'meta' is 8, allowed is an object"),
        ({"desc_act": True}, "'desc_act' is True, allowed is False"),
        ({"lm_head": False}, "'lm_head' is False, allowed is True"),
        ({"bits": 3}, "'bits' is 3, allowed is 4 or 8"),
        ({"group_size": -1}, "'group_size' is -1"),
        ({"group_size": 32}, "'group_size' is 32, allowed is a multiple of 64"),
        ({"dynamic": {"model.layers.0": {"bits": 8}}}, "an object for lm_head alone"),
        ({"dynamic": {"lm_head": {"group_size": 64}}}, "'group_size' is 64, allowed is 128"),
    ],
)
def test_a_quantisation_that_cannot_run_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        QuantizationConfig.from_json(QUANTIZED | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("heads", [1, 2, 6, 32, 40])
def test_slopes_are_the_references(heads: int) -> None:
    np.testing.assert_allclose(alibi_slopes(heads), reference_slopes(heads), rtol=1e-12)
