"""The arrays for the compiler hold exactly the integers of the checkpoint."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.gptq import dequantize, unpack_linear
from baichuan2_tpu.checkpoint.random_weights import RandomWeights, shape_config
from baichuan2_tpu.compile.net_weights import Arrays, block_weights, embedding_weights, head_weights
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.config import QuantizationConfig

SETTINGS = CompileSettings(bits=8, head="w8", context=32, prefill=(4,))


def random_weights(bits: Literal[4, 8], group_size: int = 64) -> RandomWeights:
    config = shape_config("tiny", bits)
    quantization = QuantizationConfig(bits, group_size=group_size, head_bits=bits)
    return RandomWeights(replace(config, quantization=quantization))


def unpack_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """Read the bytes as the compiler does: the lower four bits come first."""
    return values if bits == 8 else np.stack([values & 15, values >> 4], axis=-1).reshape(len(values), -1)


def read_back(arrays: Arrays, name: str, bits: int) -> np.ndarray:
    """Return the float weights that the compiler's form stands for."""
    integers = unpack_bytes(arrays[f"{name}.qweight"], bits).astype(np.float32)
    zeros, scales = (np.repeat(arrays[f"{name}.{one}"], 64, axis=1) for one in ("qzeros", "scales"))
    return (integers - zeros) * scales


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_and_zeros_are_those_of_the_checkpoint(bits: Literal[4, 8]) -> None:
    weights = random_weights(bits)
    arrays = block_weights(weights, replace(SETTINGS, bits=bits), 1)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        integers, zeros = unpack_linear(weights.linear(f"model.layers.1.{name}"))
        assert np.array_equal(unpack_bytes(arrays[f"{name}.qweight"], bits), integers)
        assert np.array_equal(arrays[f"{name}.qzeros"], zeros)
        assert arrays[f"{name}.qweight"].dtype == arrays[f"{name}.qzeros"].dtype == np.uint8
        assert arrays[f"{name}.scales"].dtype == np.float32


@pytest.mark.parametrize("group_size", [64, 128, 192])
def test_larger_groups_stand_for_the_same_weights(group_size: int) -> None:
    weights = random_weights(8, group_size)
    arrays = block_weights(weights, SETTINGS, 0)
    # 320 columns are no whole number of groups of 128 or 192: the last one is short.
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        wanted = dequantize(weights.linear(f"model.layers.0.{name}"))
        assert np.array_equal(read_back(arrays, name, 8), wanted)


@pytest.mark.parametrize("bits", [4, 8])
def test_sixteen_bits_hold_the_floats_that_the_integers_stand_for(bits: Literal[4, 8]) -> None:
    weights = random_weights(bits)
    arrays = block_weights(weights, replace(SETTINGS, bits=16), 0)
    wanted = dequantize(weights.linear("model.layers.0.mlp.up_proj"))
    assert np.array_equal(arrays["mlp.up_proj.weight"], wanted)
    assert not any(name.endswith("qweight") for name in arrays)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_head_has_its_own_bits_and_the_final_norm(bits: Literal[4, 8]) -> None:
    weights = random_weights(bits)
    arrays = head_weights(weights, replace(SETTINGS, head="w4" if bits == 4 else "w8"))
    assert np.array_equal(read_back(arrays, "lm_head", bits), dequantize(weights.linear("lm_head")))
    assert np.array_equal(arrays["norm.weight"], weights.array("model.norm"))


def test_the_embedding_is_the_checkpoints() -> None:
    weights = random_weights(8)
    arrays = embedding_weights(weights)
    assert np.array_equal(arrays["embedding.weight"], weights.array("model.embed_tokens"))


def test_rotary_tables_end_with_the_context() -> None:
    arrays = block_weights(random_weights(8), SETTINGS, 0)
    cosines, sines = arrays["rotary_cos.weight"], arrays["rotary_sin.weight"]
    assert cosines.shape == sines.shape == (32, 1, 32)
    # The frequency of element 3 of 32 is 10000 ** (-6 / 32); the second half repeats the first.
    angle = 5 * 10_000 ** (-6 / 32)
    assert cosines[5, 0, 3] == cosines[5, 0, 19] == np.float32(np.cos(angle))
    assert sines[5, 0, 3] == sines[5, 0, 19] == np.float32(np.sin(angle))
