from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.reference.float_model import FloatModel
from baichuan2_tpu.reference.operations import swiglu
from models.reference import reference_logits, reference_states
from models.tiny_checkpoint import (
    alibi_config,
    float_weights,
    rope_config,
    write_llama_safetensors,
    write_official,
)

WINDOWS = np.array([[5, 6, 7, 300, 9, 5], [1, 2, 319, 0, 9, 77]])
SHARED_KEYS = replace(rope_config(), heads=4, kv_heads=2)


def run_layers(model: FloatModel, tokens: np.ndarray, layers: int) -> np.ndarray:
    states = model.embed(tokens)
    for layer in range(layers):
        model.run_layer(layer, states)
    return states


@pytest.mark.parametrize("config", [rope_config(), alibi_config()], ids=["rope", "alibi"])
def test_logits_of_an_official_checkpoint_are_those_of_the_definition(
    tmp_path: Path, config: ModelConfig
) -> None:
    model = FloatModel(FloatCheckpoint.open(write_official(tmp_path / "float", config, seed=3)))
    weights = float_weights(config, 3)
    states = model.run(WINDOWS)
    for window, tokens in zip(states, WINDOWS, strict=True):
        np.testing.assert_allclose(
            model.logits(window), reference_logits(config, weights, tokens.tolist()), atol=2e-4
        )


@pytest.mark.parametrize(
    "config", [rope_config(), SHARED_KEYS, alibi_config()], ids=["rope", "shared", "alibi"]
)
def test_states_behind_every_layer_are_those_of_the_definition(tmp_path: Path, config: ModelConfig) -> None:
    config = replace(config, is_head_normalized=False)
    model = FloatModel(FloatCheckpoint.open(write_llama_safetensors(tmp_path / "float", config, seed=4)))
    weights = float_weights(config, 4)
    for layers in range(config.layers + 1):
        states = run_layers(model, WINDOWS, layers)
        expected = [reference_states(config, weights, tokens.tolist())[layers] for tokens in WINDOWS]
        np.testing.assert_allclose(states, expected, atol=1e-4)


def test_a_tied_head_is_the_embedding(tmp_path: Path) -> None:
    config = rope_config(is_head_tied=True, is_head_normalized=False)
    model = FloatModel(FloatCheckpoint.open(write_llama_safetensors(tmp_path / "float", config)))
    states = model.run(WINDOWS[:1])
    expected = reference_logits(config, float_weights(config, 0), WINDOWS[0].tolist())
    np.testing.assert_allclose(model.logits(states[0]), expected, atol=2e-4)


def test_a_gate_far_below_zero_gives_zero_without_overflow() -> None:
    gate = np.array([-1e4, -100.0, 0.0, 1.0, 1e4], np.float32)
    expected = np.array([0, 0, 0, 1 / (1 + np.exp(-1)), 1e4])
    np.testing.assert_allclose(swiglu(gate, np.ones(5, np.float32)), expected, atol=1e-6)
