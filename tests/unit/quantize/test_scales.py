"""Scales of columns: the float model stays what it is, and its rounded weights come nearer to it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu import _native
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.layout import layer_linears, layer_norms
from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.config import Method, ModelConfig
from baichuan2_tpu.errors import CheckpointError, RequestError
from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.quantize.calibration_text import Calibration, open_windows
from baichuan2_tpu.quantize.column_scales import find_scales, mean_squares, sample_rows
from baichuan2_tpu.quantize.gptq import Rounded
from baichuan2_tpu.quantize.layer_scales import find_layer_scales
from baichuan2_tpu.reference.float_model import FloatModel
from models.reference import reference_logits
from models.tiny_checkpoint import (
    alibi_config,
    float_weights,
    official_tensors,
    restored_weights,
    rope_config,
    round_to_bfloat16,
    write_bin,
    write_llama_safetensors,
    write_official,
    write_safetensors_bf16,
)
from models.tiny_tokenizer import write_sentencepiece

Floats = NDArray[np.float32]

SHORT = {"vocabulary_size": 448, "max_context": 64}
GROUPED = rope_config(**SHORT, kv_heads=2, is_head_normalized=False)
METHODS: tuple[Method, ...] = ("search", "scale")
CONFIGS = {"rope": rope_config(**SHORT), "alibi": alibi_config(**SHORT), "grouped": GROUPED}
TOKENS = [5, 6, 7, 300, 9, 399, 1]


def write_model(directory: Path, config: ModelConfig) -> Path:
    write = write_official if config.is_head_normalized else write_llama_safetensors
    write(directory, config)
    write_sentencepiece(directory)
    return directory


def scaled_weights(source: Path) -> dict[str, Floats]:
    """Return every weight after scaling, in float."""
    checkpoint = FloatCheckpoint.open(source)
    windows = open_windows(checkpoint, Calibration(), "scale").given
    assert windows is not None
    model, config = FloatModel(checkpoint), checkpoint.config
    states = model.embed(windows)
    weights = {
        f"{name}.weight": checkpoint.read(name) for name in ("model.embed_tokens", "model.norm", "lm_head")
    }
    with ThreadPoolExecutor(2) as pool:
        for layer in range(config.layers):
            expected = states.copy()
            model.run_layer(layer, expected)
            scales = find_layer_scales(checkpoint, layer, states, group_size=64, pool=pool)
            np.testing.assert_allclose(states, expected, rtol=1e-4, atol=1e-4)
            for name, shape in layer_linears(config, layer).items():
                weights[f"{name}.weight"] = scales.read_linear(checkpoint, name, shape)
            for name in layer_norms(layer):
                weights[f"{name}.weight"] = scales.read_norm(checkpoint, name)
    return weights


@pytest.mark.parametrize("name", CONFIGS)
def test_the_scaled_float_model_gives_the_same_logits(tmp_path: Path, name: str) -> None:
    config = CONFIGS[name]
    source = write_model(tmp_path / "float", config)
    scaled, weights = scaled_weights(source), float_weights(config, 0)
    values = "model.layers.0.self_attn.v_proj.weight"
    ratios = scaled[values] / weights[values]
    assert np.nanmax(ratios) > 1.2
    assert np.nanmin(ratios) < 0.8
    expected = reference_logits(config, weights, TOKENS)
    folded = replace(config, is_head_normalized=False)  # FloatCheckpoint did it
    found = reference_logits(folded, scaled, TOKENS)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-5, f"largest error {error:.2e} of the largest logit"


def output_error(inputs: Floats, weights: Floats, scales: Floats, importance: Floats | None) -> float:
    """Return the squared error of the outputs of rounded weights."""
    found = _native.quantize_groups(np.ascontiguousarray(weights * scales), 4, 64, importance)
    rounded = Rounded(found[0], found[1].view(np.float16).astype(np.float32), found[2], 64).weights()
    return float(np.square(inputs @ (rounded / scales - weights).T).sum())


@pytest.mark.parametrize("columns", [256, 200])
def test_scales_lower_the_error_of_outputs_more_than_any_power_of_the_inputs(columns: int) -> None:
    random = np.random.default_rng(1)
    sizes = random.lognormal(0, 1, columns)
    inputs = (random.normal(0, 1, (1000, columns)) * sizes).astype(np.float32)
    weights = (random.standard_t(6, (192, columns)) * 0.02).astype(np.float32)
    seen, unseen = inputs[:500], inputs[500:]
    energy = mean_squares(seen)
    with ThreadPoolExecutor(2) as pool:
        own = find_scales(sample_rows([weights]), energy, 64, pool)
    powers = [energy ** np.float32(power) for power in (0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5)]
    errors = [output_error(unseen, weights, scales, energy / scales**2) for scales in (own, *powers)]
    assert errors[0] < min(errors[1:]), errors
    assert errors[0] < 0.75 * errors[1], errors


def test_columns_of_one_owner_have_one_scale_and_unseen_ones_stay_finite() -> None:
    random = np.random.default_rng(2)
    weights = random.normal(0, 0.02, (64, 128)).astype(np.float32)
    energy = random.lognormal(0, 2, 128).astype(np.float32)
    energy[::5] = 0
    owner = np.tile(np.arange(32), 4)
    with ThreadPoolExecutor(1) as pool:
        scales = find_scales(sample_rows([weights]), energy, 64, pool, owner=owner)
        dead = find_scales(sample_rows([weights * 0]), energy * 0, 64, pool)
    np.testing.assert_array_equal(scales, np.tile(scales[:32], 4))
    assert np.isfinite(scales).all()
    assert np.isfinite(dead).all()
    assert scales.min() > 0


def write_outliers(directory: Path, config: ModelConfig) -> tuple[Path, dict[str, Floats]]:
    """Write a model of which some channels are many times larger than others, as trained models' are."""
    weights = float_weights(config, 0)
    sizes = np.random.default_rng(3).lognormal(0, 1, config.hidden_size).astype(np.float32)
    for layer in range(config.layers):
        for norm in layer_norms(layer):
            weights[f"{norm}.weight"] = round_to_bfloat16(weights[f"{norm}.weight"] * sizes)
        for name, (_, columns) in layer_linears(config, layer).items():
            if columns == config.hidden_size and "o_proj" not in name:
                weights[f"{name}.weight"] = round_to_bfloat16(weights[f"{name}.weight"] / sizes)
    write_model(directory, config)
    for file in directory.glob("*.safetensors"):
        file.unlink()
    write_safetensors_bf16(directory / "model.safetensors", weights)
    return directory, weights


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_logits_of_an_unseen_text_are_closer_than_by_the_search(tmp_path: Path, kv_heads: int) -> None:
    config = replace(GROUPED, kv_heads=kv_heads)
    source, weights = write_outliers(tmp_path / "float", config)
    tokens = np.random.default_rng(4).integers(3, 400, 48).tolist()
    expected = reference_logits(config, weights, tokens)
    errors = dict[str, float]()
    for method in METHODS:
        quantize(source, tmp_path / method, bits=4, method=method)
        checkpoint = QuantizedCheckpoint(tmp_path / method)
        found = reference_logits(checkpoint.config, restored_weights(checkpoint), tokens)
        errors[method] = float(np.square(found - expected).sum())
    assert errors["scale"] < 0.5 * errors["search"], errors


def test_a_head_of_4_bits_is_that_of_the_search(tmp_path: Path) -> None:
    """Its scales would go into the last norm, which the float head for other tools has before it too."""
    source = write_model(tmp_path / "float", CONFIGS["rope"])
    for method in METHODS:
        quantize(source, tmp_path / method, bits=4, head_bits=4, method=method)
    scaled, searched = (QuantizedCheckpoint(tmp_path / method) for method in ("scale", "search"))
    np.testing.assert_array_equal(scaled.array("model.norm"), searched.array("model.norm"))
    np.testing.assert_array_equal(scaled.linear("lm_head").qweight, searched.linear("lm_head").qweight)


def test_weights_that_float16_only_just_holds_are_not_scaled(tmp_path: Path) -> None:
    config = CONFIGS["rope"]
    tensors = official_tensors(config, 0)
    gate, norm = "model.layers.0.mlp.gate_proj.weight", "model.layers.0.post_attention_layernorm"
    tensors[gate][0] = 65_000  # the largest weight of every column
    source = write_model(tmp_path / "float", config)
    for file in source.glob("pytorch_model*"):
        file.unlink()
    write_bin(source / "pytorch_model.bin", tensors)
    quantize(source, tmp_path / "q", bits=4)
    kept = QuantizedCheckpoint(tmp_path / "q").array(norm)
    np.testing.assert_array_equal(kept, FloatCheckpoint.open(source).read(norm))


def test_inputs_that_are_not_finite_are_told(tmp_path: Path) -> None:
    config = CONFIGS["rope"]
    tensors = official_tensors(config, 0)
    tensors["model.layers.0.post_attention_layernorm.weight"] *= 3e4
    for part in ("gate", "up"):
        tensors[f"model.layers.0.mlp.{part}_proj.weight"] *= 1e5
    source = write_model(tmp_path / "float", config)
    for file in source.glob("pytorch_model*"):
        file.unlink()
    write_bin(source / "pytorch_model.bin", tensors)
    with pytest.raises(CheckpointError, match="not finite on the calibration text"):
        quantize(source, tmp_path / "q", bits=4)


@pytest.mark.parametrize(("bits", "method"), [(8, None), (4, "search")])
def test_a_text_for_a_method_that_takes_none_is_refused(
    tmp_path: Path, bits: int, method: Method | None
) -> None:
    """It was ignored without a word."""
    source = write_model(tmp_path / "float", CONFIGS["rope"])
    with pytest.raises(RequestError, match="takes no text to calibrate with; use scale or gptq"):
        quantize(source, tmp_path / "q", bits=bits, method=method, calibration=Calibration())
