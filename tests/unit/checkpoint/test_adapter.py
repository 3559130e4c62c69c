import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.adapter import Adapter
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.identify import identify
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize import QuantizeEvent, quantize
from models.foreign_checkpoint import pack_gptq, write_foreign
from models.tiny_adapter import Matrices, adapter_matrices, write_adapter
from models.tiny_checkpoint import float_weights, rope_config, write_llama_safetensors, write_official
from models.tiny_gguf import write_gguf

CONFIG = rope_config()
SPLIT = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head")
PACKED = ("W_pack", "o_proj", "gate_proj", "up_proj", "down_proj")
Weights = dict[str, NDArray[np.float32]]


def base_weights(config: ModelConfig = CONFIG) -> Weights:
    return {name.removesuffix(".weight"): tensor for name, tensor in float_weights(config, 0).items()}


def add(weights: Mapping[str, NDArray[np.float32]], matrices: Matrices, scale: float) -> Weights:
    """Return W + scale * B A of every weight, by the plain formula in float64."""
    merged = dict(weights)
    for module, (a, b) in matrices.items():
        change = scale * (b.astype(np.float64) @ a.astype(np.float64))
        names = [module]
        if module.endswith("W_pack"):
            names = [module.replace("W_pack", f"{letter}_proj") for letter in "qkv"]
        stops = np.cumsum([weights[name].shape[0] for name in names])
        for name, part in zip(names, np.split(change, stops[:-1]), strict=True):
            merged[name] = (merged[name] + part).astype(np.float32)
    return merged


def normalise(weights: Weights) -> Weights:
    head = weights["lm_head"].astype(np.float64)
    norms = np.sqrt(np.square(head).sum(axis=1, keepdims=True))
    return weights | {"lm_head": (head / norms).astype(np.float32)}


def check_weights(checkpoint: FloatCheckpoint, expected: Weights) -> None:
    for name, tensor in expected.items():
        for start, stop in ((0, None), (5, 11)):
            error = np.abs(checkpoint.read(name, start, stop) - tensor[start:stop]).max()
            assert error < 1e-6, f"{name}: largest error {error}"


def write_base(path: Path, layout: str) -> Path:
    if layout == "W_pack":
        return write_official(path, CONFIG)
    return write_llama_safetensors(path, CONFIG)


@pytest.mark.parametrize("targets", [SPLIT, PACKED], ids=["split targets", "W_pack targets"])
@pytest.mark.parametrize("layout", ["W_pack", "split"])
def test_the_merged_weights_are_those_of_the_formula(
    tmp_path: Path, layout: str, targets: tuple[str, ...]
) -> None:
    matrices = adapter_matrices(CONFIG, targets)
    adapter = write_adapter(tmp_path / "adapter", matrices)
    checkpoint = FloatCheckpoint.open(write_base(tmp_path / "base", layout), [adapter])
    expected = add(base_weights(), matrices, 8 / 4)
    # The head of the official layout is normalised, after the adapter.
    check_weights(checkpoint, normalise(expected) if layout == "W_pack" else expected)


def test_an_adapter_is_merged_into_a_gguf_file_too(tmp_path: Path) -> None:
    config = rope_config(vocabulary_size=264, is_head_normalized=False)
    path = write_gguf(tmp_path / "m.gguf", config, float_weights(config, 0))
    plain = FloatCheckpoint.open(path)
    matrices = adapter_matrices(config, ("W_pack",))
    checkpoint = FloatCheckpoint.open(path, [write_adapter(tmp_path / "adapter", matrices)])
    check_weights(checkpoint, add({name: plain.read(name) for name in base_weights(config)}, matrices, 2))


def test_an_adapter_on_integers_of_another_tool_has_them_quantised_again(tmp_path: Path) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 64}
    write_foreign(tmp_path / "base", settings, pack_gptq, group_size=64)
    plain = FloatCheckpoint.open(tmp_path / "base")
    matrices = adapter_matrices(plain.config, ("q_proj", "up_proj"))
    adapter = write_adapter(tmp_path / "adapter", matrices)
    checkpoint = FloatCheckpoint.open(tmp_path / "base", [adapter])
    check_weights(checkpoint, add({name: plain.read(name) for name in matrices}, matrices, 2))
    notices: list[str] = []
    quantize(tmp_path / "base", tmp_path / "q", adapters=[adapter], notice=notices.append)
    assert "its integers cannot be kept: adapters are merged into its weights" in "".join(notices)
    settings_made = QuantizedCheckpoint(tmp_path / "q").config.quantization
    assert settings_made is not None
    assert settings_made.bits == 8


@pytest.mark.parametrize("is_bin", [False, True])
def test_the_scale_follows_rank_alpha_and_their_patterns(tmp_path: Path, is_bin: bool) -> None:
    first, second = (f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 1))
    matrices = adapter_matrices(CONFIG, ("o_proj",))
    wide = adapter_matrices(CONFIG, ("o_proj",), rank=16, seed=3)[second]
    adapter = write_adapter(
        tmp_path / "adapter",
        matrices | {second: wide},
        is_bin=is_bin,
        settings={
            "use_rslora": True,
            "rank_pattern": {"layers.1.self_attn.o_proj": 16},
            "alpha_pattern": {r"^model\.layers\.\d+\.self_attn\.o_proj": 20, "o_proj": 99},
        },
    )
    checkpoint = FloatCheckpoint.open(write_base(tmp_path / "base", "split"), [adapter])
    expected = add(base_weights(), {first: matrices[first]}, 20 / math.sqrt(4))
    check_weights(checkpoint, add(expected, {second: wide}, 20 / math.sqrt(16)))


def test_several_adapters_are_merged_in_order_and_whole_tensors_replace(tmp_path: Path) -> None:
    config = replace(CONFIG, is_head_normalized=False)
    head, norm, embedding = (
        base_weights()[name] + 1 for name in ("lm_head", "model.norm", "model.embed_tokens")
    )
    matrices = adapter_matrices(config, ("lm_head", "up_proj"))
    one = write_adapter(tmp_path / "one", matrices)
    two = write_adapter(
        tmp_path / "two",
        {},
        whole={"lm_head": head, "model.norm": norm, "model.embed_tokens": embedding},
        settings={"modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    )
    base = write_base(tmp_path / "base", "split")
    whole = {"lm_head": head, "model.norm": norm, "model.embed_tokens": embedding}
    up = {name: pair for name, pair in matrices.items() if "up_proj" in name}
    check_weights(FloatCheckpoint.open(base, [one, two]), add(base_weights(), up, 2) | whole)
    check_weights(FloatCheckpoint.open(base, [two, one]), add(base_weights() | whole, matrices, 2))


def test_the_adapter_name_of_a_raw_state_dict_is_left_out(tmp_path: Path) -> None:
    matrices = adapter_matrices(CONFIG, ("up_proj",))
    whole = {"lm_head.modules_to_save.default": base_weights()["lm_head"] * 2}
    for module, pair in matrices.items():
        whole |= {f"{module}.lora_{x}.default": matrix for x, matrix in zip("AB", pair, strict=True)}
    adapter = write_adapter(tmp_path / "adapter", {}, whole=whole)
    checkpoint = FloatCheckpoint.open(write_base(tmp_path / "base", "split"), [adapter])
    expected = add(base_weights(), matrices, 2)
    check_weights(checkpoint, expected | {"lm_head": expected["lm_head"] * 2})


def refusal(directory: Path, config: ModelConfig = CONFIG) -> str:
    with pytest.raises(CheckpointError) as caught:
        Adapter(directory, config)
    message = str(caught.value)
    assert message.isprintable()
    assert str(directory) in message
    return message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"peft_type": "IA3"},
            "peft_type is 'IA3', allowed for merging is LORA; merge it with PEFT's merge_and_unload()",
        ),
        ({"bias": "lora_only"}, "bias is 'lora_only', allowed for merging is none"),
        ({"use_dora": True}, "use_dora is True, allowed for merging is none; merge it with PEFT"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        (
            {"init_lora_weights": "pissa"},
            "init_lora_weights is 'pissa', allowed for merging is",
        ),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is [1]"),
        ({"r": 0}, "r is 0, allowed is a number above 0"),
        ({"lora_alpha": "x"}, "lora_alpha is 'x', allowed is a number above 0"),
        ({"lora_alpha": float(10**9)}, "lora_alpha is 1000000000.0, allowed is"),
        ({"rank_pattern": [1]}, "rank_pattern is [1], allowed for merging is an object"),
        (
            {"rank_pattern": {"(a+)+": 4}},
            "'(a+)+', allowed for merging is names of modules and simple",
        ),
        (
            {"alpha_pattern": {".*.*.*x": 4}},
            "'.*.*.*x', allowed for merging is names of modules",
        ),
        ({"alpha_pattern": {"[": 4}}, "alpha_pattern is '[', allowed for merging is names of modules"),
        ({"alpha_pattern": {f".*{i}": 4 for i in range(17)}}, "allowed for merging is names of modules"),
        (
            {"modules_to_save": ["embed_tokens"]},
            "holds no tensor of 'embed_tokens', which adapter_config.json",
        ),
        ({"modules_to_save": [1]}, "modules_to_save is [1], allowed for merging is a list of names"),
        ({"r": 8}, "has shape (4, 128), the base model and adapter_config.json ask for (8, 128)"),
    ],
)
def test_what_is_not_plain_lora_is_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    matrices = adapter_matrices(CONFIG, ("W_pack",))
    assert message in refusal(write_adapter(tmp_path / "a", matrices, settings=settings))


def test_tensors_that_fit_nothing_are_refused(tmp_path: Path) -> None:
    matrices = adapter_matrices(CONFIG, ("up_proj",))
    (module, pair), *_ = matrices.items()
    other = write_adapter(tmp_path / "other", {module.replace("up_proj", "c_attn"): pair})
    message = refusal(other)
    assert "up_proj" in message
    assert "c_attn.lora_A.weight' cannot be merged into this model" in message
    assert "trained on 'baichuan-inc/Baichuan2-7B-Chat'" in message
    whole = {"model.layers.0.mlp.up_proj.lora_magnitude_vector": np.ones(4, "f4")}
    assert "lora_magnitude_vector.weight' cannot be merged" in refusal(
        write_adapter(tmp_path / "dora", matrices, whole=whole)
    )
    resized = {"model.embed_tokens": np.ones((CONFIG.vocabulary_size + 1, CONFIG.hidden_size), "f4")}
    assert "has shape (321, 128), the base model" in refusal(
        write_adapter(tmp_path / "resized", matrices, whole=resized)
    )
    empty = {"model.norm": np.ones(0, "f4")}
    assert "is empty, as ZeRO-3 saves it; gather the weights" in refusal(
        write_adapter(tmp_path / "zero", matrices, whole=empty)
    )
    half = {f"{module}.lora_A": pair[0]}
    assert "has one of lora_A and lora_B" in refusal(write_adapter(tmp_path / "half", {}, whole=half))
    assert "holds no tensor" in refusal(write_adapter(tmp_path / "empty", {}))


def test_a_shared_embedding_is_not_changed(tmp_path: Path) -> None:
    config = replace(CONFIG, is_head_tied=True, is_head_normalized=False)
    adapter = write_adapter(tmp_path / "a", adapter_matrices(config, ("lm_head",)))
    assert "changes lm_head, which the base model has as one tensor; merge it with PEFT" in refusal(
        adapter, config
    )


def test_a_folder_without_an_adapter_says_what_was_looked_for(tmp_path: Path) -> None:
    assert "holds no adapter_config.json; name the folder of an adapter" in refusal(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    assert "holds neither adapter_model.safetensors nor adapter_model.bin" in refusal(tmp_path)


@pytest.mark.parametrize("has_config", [False, True])
def test_a_folder_of_an_adapter_alone_is_named_with_its_base(tmp_path: Path, has_config: bool) -> None:
    adapter = write_adapter(tmp_path / "a", adapter_matrices(CONFIG, ("W_pack",)))
    if has_config:
        (adapter / "config.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        identify(adapter)
    assert str(caught.value) == (
        f"{adapter}: is a LoRA adapter, not a model; merge it into the model that it was trained on, "
        f"'baichuan-inc/Baichuan2-7B-Chat': baichuan2 quantize MODEL DST --adapter {adapter}"
    )


def test_a_merged_checkpoint_names_its_adapters(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "W_pack")
    adapter = write_adapter(tmp_path / "mine", adapter_matrices(CONFIG, ("W_pack",)))
    notices: list[str] = []
    quantize(base, tmp_path / "q", bits=8, adapters=[adapter], notice=notices.append)
    assert notices == [
        f"merging {adapter}: LoRA of rank 4 on 2 modules; trained on 'baichuan-inc/Baichuan2-7B-Chat'"
    ]
    (record,) = json.loads((tmp_path / "q" / "config.json").read_text())["merged_adapters"]
    assert record["name"] == "mine"
    assert sorted(record["sha256"]) == ["adapter_config.json", "adapter_model.safetensors"]
    assert all(len(digest) == 64 for digest in record["sha256"].values())


def test_a_number_that_overflows_is_blamed_on_the_base_and_the_adapter(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", "W_pack")
    matrices = adapter_matrices(CONFIG, ("W_pack",))
    adapter = write_adapter(tmp_path / "a", {m: (a, b * 1e30) for m, (a, b) in matrices.items()})
    with pytest.raises(CheckpointError) as caught:
        quantize(base, tmp_path / "q", bits=8, adapters=[adapter])
    assert f"of-00002.bin and {adapter}: tensor 'model.layers." in str(caught.value)


class Interruption(Exception):  # noqa: N818 - stands for Ctrl-C
    pass


def test_a_merge_of_another_adapter_starts_over(tmp_path: Path) -> None:
    """Only names, sizes and times are looked at: two adapters of one name would have been mixed."""
    base = write_base(tmp_path / "base", "W_pack")
    adapters = [
        write_adapter(tmp_path / name / "a", adapter_matrices(CONFIG, ("W_pack",), seed=seed))
        for seed, name in enumerate("xy")
    ]

    def interrupt(event: QuantizeEvent) -> None:
        if event.done == 2:
            raise Interruption

    with pytest.raises(Interruption):
        quantize(
            base,
            tmp_path / "q",
            bits=4,
            method="search",
            adapters=adapters[:1],
            workers=1,
            progress=interrupt,
        )
    for adapter, first_done in ((adapters[0], 2), (adapters[1], 0)):
        done: list[int] = []

        def stop_at_once(event: QuantizeEvent, done: list[int] = done) -> None:
            done.append(event.done)
            raise Interruption

        with pytest.raises(Interruption):
            quantize(base, tmp_path / "q", bits=4, method="search", adapters=[adapter], progress=stop_at_once)
        assert done == [first_done]
