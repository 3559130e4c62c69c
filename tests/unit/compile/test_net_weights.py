"""The arrays for the compiler hold exactly the integers of the checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import baichuan2_tpu.compile.float_rows
from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.packing import dequantize, unpack_linear
from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.compile.alibi import alibi_arrays
from baichuan2_tpu.compile.float_rows import float_rows
from baichuan2_tpu.compile.net_weights import Arrays, block_weights, embedding_weights, head_weights
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.config import QuantizationConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.shapes import shape_config
from models.tiny_checkpoint import alibi_config, rope_config, write_official

SETTINGS = CompileSettings(
    bits=8, head="w8", context=32, rows=64, stages=(Stage(1, 64), Stage(4, 64)), layers_per_net=1
)


def random_weights(bits: Literal[4, 8], group_size: int = 64) -> RandomWeights:
    config = shape_config("tiny", bits)
    quantization = QuantizationConfig(bits, group_size=group_size, head_bits=bits)
    return RandomWeights(replace(config, quantization=quantization))


def unpack_bytes(values: np.ndarray, bits: int) -> np.ndarray:
    """Read the bytes as the compiler does: the lower four bits come first."""
    return values if bits == 8 else np.stack([values & 15, values >> 4], axis=-1).reshape(len(values), -1)


def read_back(arrays: Arrays, name: str, bits: int, group_size: int = 64) -> np.ndarray:
    """Return the float weights that the compiler's form stands for."""
    integers = unpack_bytes(arrays[f"{name}.qweight"], bits).astype(np.float32)
    zeros, scales = (np.repeat(arrays[f"{name}.{part}"], group_size, axis=1) for part in ("qzeros", "scales"))
    return (integers - zeros) * scales


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_and_zeros_are_those_of_the_checkpoint(bits: Literal[4, 8]) -> None:
    weights = random_weights(bits)
    arrays = block_weights(weights, replace(SETTINGS, bits=bits), 1)
    for name in ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj"):
        integers, zeros = unpack_linear(weights.linear(f"model.layers.1.{name}"))
        assert np.array_equal(unpack_bytes(arrays[f"0.{name}.qweight"], bits), integers)
        assert np.array_equal(arrays[f"0.{name}.qzeros"], zeros)
        assert arrays[f"0.{name}.qweight"].dtype == arrays[f"0.{name}.qzeros"].dtype == np.uint8
        assert arrays[f"0.{name}.scales"].dtype == np.float32


def test_a_net_of_several_layers_names_arrays_by_their_place_in_it() -> None:
    weights = random_weights(8)
    arrays = block_weights(weights, replace(SETTINGS, layers_per_net=2), 0)
    for place in (0, 1):
        expected = dequantize(weights.linear(f"model.layers.{place}.mlp.up_proj"))
        assert np.array_equal(read_back(arrays, f"{place}.mlp.up_proj", 8), expected)
    assert sum(name.endswith("qweight") for name in arrays) == 14
    assert sum(name.startswith("rotary") for name in arrays) == 2


@pytest.mark.parametrize("group_size", [64, 128, 192])
def test_larger_groups_stand_for_the_same_weights(group_size: int) -> None:
    weights = random_weights(8, group_size)
    arrays = block_weights(weights, SETTINGS, 0)
    # 320 columns are not a whole number of groups of 128 or 192: the last one is short.
    for name in ("self_attn.k_proj", "mlp.down_proj"):
        expected = dequantize(weights.linear(f"model.layers.0.{name}"))
        assert np.array_equal(read_back(arrays, f"0.{name}", 8), expected)


@pytest.mark.parametrize(("group_size", "compiled"), [(128, 128), (256, 256), (512, 256), (384, 128)])
def test_groups_that_divide_all_columns_are_not_repeated(group_size: int, compiled: int) -> None:
    quantization = QuantizationConfig(8, group_size=group_size)
    config = replace(
        rope_config(hidden_size=1536, intermediate_size=1536, heads=12, kv_heads=12, head_size=128),
        quantization=quantization,
    )
    weights = RandomWeights(config)
    arrays = block_weights(weights, SETTINGS, 0)
    assert arrays["0.mlp.down_proj.scales"].shape == (1536, 1536 // compiled)
    expected = dequantize(weights.linear("model.layers.0.mlp.down_proj"))
    assert np.array_equal(read_back(arrays, "0.mlp.down_proj", 8, compiled), expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_sixteen_bits_hold_the_floats_that_the_integers_stand_for(bits: Literal[4, 8]) -> None:
    weights = random_weights(bits)
    arrays = block_weights(weights, replace(SETTINGS, bits=16), 0)
    expected = dequantize(weights.linear("model.layers.0.mlp.up_proj"))
    assert np.array_equal(arrays["0.mlp.up_proj.weight"].T, expected.astype(np.float16))
    assert not any(name.endswith("qweight") for name in arrays)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_head_has_its_own_bits_and_the_final_norm(bits: Literal[4, 8]) -> None:
    weights = random_weights(bits)
    arrays = head_weights(weights, replace(SETTINGS, head="w4" if bits == 4 else "w8"))
    assert np.array_equal(read_back(arrays, "lm_head", bits), dequantize(weights.linear("lm_head")))
    assert np.array_equal(arrays["norm.weight"], weights.array("model.norm"))


def test_the_embedding_is_the_checkpoints() -> None:
    weights = random_weights(8)
    arrays = embedding_weights(weights, SETTINGS)
    assert np.array_equal(arrays["embedding.weight"], weights.array("model.embed_tokens"))


def test_bfloat16_is_rounded_to_the_nearest_and_to_even_between_two() -> None:
    weights = random_weights(8)
    arrays = head_weights(weights, replace(SETTINGS, head="f16", dtype="bfloat16"))
    found = (arrays["lm_head.weight"].T.astype(np.uint32) << 16).view(np.float32)
    wanted = dequantize(weights.linear("lm_head"))
    unit = np.float32(2.0) ** (np.frexp(wanted)[1] - 8)
    assert np.array_equal(found, np.round(wanted / unit) * unit)


@pytest.fixture
def checkpoint(tmp_path: Path) -> FloatCheckpoint:
    config = rope_config(is_head_normalized=True)
    write_official(tmp_path, config)
    return FloatCheckpoint.open(tmp_path)


def test_a_float_checkpoint_is_split_and_its_head_normalised(checkpoint: FloatCheckpoint) -> None:
    settings = replace(SETTINGS, bits=16, head="f16", dtype="bfloat16")
    arrays = block_weights(checkpoint, settings, 1)
    keys = checkpoint.read("model.layers.1.self_attn.k_proj")
    # The checkpoint itself is of bfloat16: nothing is rounded.
    bits = arrays["0.self_attn.k_proj.weight"].T.astype(np.uint32) << 16
    assert np.array_equal(bits.view(np.float32), keys)
    head = head_weights(checkpoint, replace(settings, dtype="float16"))["lm_head.weight"]
    np.testing.assert_allclose(np.linalg.norm(head.astype(np.float64), axis=0), 1, rtol=1e-3)


def test_slices_join_to_the_whole(checkpoint: FloatCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baichuan2_tpu.compile.float_rows, "_SLICE_WEIGHTS", 1)
    weights = random_weights(4)
    for source in (checkpoint, weights):
        shape = (source.config.vocabulary_size, source.config.hidden_size)
        slices = list(float_rows(source, "lm_head", shape, "float16"))
        assert [len(one) for one in slices] == [64] * (shape[0] // 64)
    assert np.array_equal(np.concatenate(slices), dequantize(weights.linear("lm_head")).astype(np.float16))


def test_a_weight_beyond_float16_is_refused(
    checkpoint: FloatCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = np.full((64, 128), 7e4, np.float32)
    monkeypatch.setattr(checkpoint, "read", lambda *_: huge)
    with pytest.raises(CheckpointError, match=r"lm_head has the weight 70000.* --dtype bfloat16"):
        next(float_rows(checkpoint, "lm_head", (64, 128), "float16"))
    assert next(float_rows(checkpoint, "lm_head", (64, 128), "bfloat16")).dtype == np.uint16


def test_alibi_positions_are_exact_in_float16() -> None:
    arrays = alibi_arrays(alibi_config(), 4096)
    coarse, fine = (arrays[f"alibi.{part}.table"].astype(np.float16) for part in ("coarse", "fine"))
    assert np.array_equal((coarse.astype(np.int64) + fine.astype(np.int64)).ravel(), np.arange(4096))


def test_rotary_tables_end_with_the_context() -> None:
    arrays = block_weights(random_weights(8), SETTINGS, 0)
    cosines, sines = arrays["rotary_cos.weight"], arrays["rotary_sin.weight"]
    assert cosines.shape == sines.shape == (32, 1, 32)
    # The frequency of element 3 of 32 is 10000 ** (-6 / 32); the second half repeats the first.
    angle = 5 * 10_000 ** (-6 / 32)
    assert cosines[5, 0, 3] == cosines[5, 0, 19] == np.float32(np.cos(angle))
    assert sines[5, 0, 3] == sines[5, 0, 19] == np.float32(np.sin(angle))
