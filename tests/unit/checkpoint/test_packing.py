import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baichuan2_tpu.checkpoint.packing import dequantize, pack_linear, unpack_linear


@settings(deadline=None)
@given(st.sampled_from([4, 8]), st.integers(1, 4), st.integers(1, 24), st.integers(0, 2**32))
def test_packing_loses_nothing(bits: int, rows: int, columns: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    outputs, inputs, groups = 8 * rows, 8 * columns, -(-8 * columns // 64)
    integers = random.integers(0, 1 << bits, (outputs, inputs), np.uint8)
    zeros = random.integers(1, 1 << bits, (outputs, groups), np.uint8)
    scales = random.random((outputs, groups)).astype(np.float16)
    linear = pack_linear(integers, scales, zeros, bits=bits, group_size=64)
    assert linear.qweight.shape == (inputs * bits // 32, outputs)
    assert linear.qzeros.shape == (groups, outputs * bits // 32)
    assert linear.scales.shape == (groups, outputs)
    for found, expected in zip(unpack_linear(linear), (integers, zeros), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_bits_lie_where_other_readers_look_for_them(bits: int) -> None:
    per_word = 32 // bits
    integers = (np.arange(8 * 64) % (1 << bits)).astype(np.uint8).reshape(8, 64)
    zeros = np.arange(1, 9, dtype=np.uint8).reshape(8, 1)
    linear = pack_linear(integers, np.ones((8, 1), np.float16), zeros, bits=bits, group_size=64)
    mask = (1 << bits) - 1
    for output in range(8):
        for column in range(64):
            word = int(linear.qweight[column // per_word, output]) >> bits * (column % per_word)
            assert word & mask == integers[output, column]
        word = int(linear.qzeros[0, output // per_word]) >> bits * (output % per_word)
        assert word & mask == zeros[output, 0] - 1


def test_dequantised_weight_is_scale_times_distance_from_zero() -> None:
    integers = np.tile(np.arange(16, dtype=np.uint8), (8, 9))  # K = 144: the last group is short
    zeros = np.array([[1, 8, 15]] * 8, np.uint8)
    scales = np.array([[0.5, 1.0, 2.0]] * 8, np.float16)
    found = dequantize(pack_linear(integers, scales, zeros, bits=4, group_size=64))
    for column in range(144):
        group = column // 64
        assert found[3, column] == scales[3, group] * (float(integers[3, column]) - zeros[3, group])


def test_a_stored_zero_of_all_ones_wraps_to_zero() -> None:
    linear = pack_linear(
        np.ones((8, 64), np.uint8),
        np.ones((8, 1), np.float16),
        np.ones((8, 1), np.uint8),
        bits=4,
        group_size=64,
    )
    linear.qzeros[:] = -1
    assert not unpack_linear(linear)[1].any()
