"""Calibrated rounding of one linear: it must lower the error of outputs, and be the same for any threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu import _native
from baichuan2_tpu.checkpoint.packing import dequantize
from baichuan2_tpu.quantize.gptq import Curvature, Rounded, join_rows, round_linear

Floats = NDArray[np.float32]


def correlated_inputs(columns: int, tokens: int = 600) -> Floats:
    """Make inputs like a model's: a few directions and columns hold most of the energy."""
    random = np.random.default_rng(1)
    mixing = random.normal(0, 1, (columns // 4, columns)) * random.lognormal(0, 1, columns)
    inputs = random.normal(0, 1, (tokens, columns // 4)) @ mixing + random.normal(0, 0.3, (tokens, columns))
    return inputs.astype(np.float32)


def random_weights(rows: int, columns: int) -> Floats:
    return np.random.default_rng(2).normal(0, 0.02, (rows, columns)).astype(np.float32)


def rounded(
    weights: Floats,
    inputs: Floats,
    *,
    wished: Floats | None = None,
    bits: int = 4,
    group_size: int = 64,
    threads: int = 2,
) -> Rounded:
    lack: Floats = np.subtract(inputs if wished is None else wished, inputs, dtype=np.float32)
    gram: Floats = inputs.T @ inputs
    product: Floats = np.matmul(lack.T, inputs, dtype=np.float32)
    curvature = Curvature.of_inputs(gram, product)
    with ThreadPoolExecutor(threads) as pool:
        return round_linear(weights, curvature, bits=bits, group_size=group_size, pool=pool)


def searched(weights: Floats, bits: int, group_size: int) -> Floats:
    integers, scales, zeros = _native.quantize_groups(weights, bits, group_size)
    return Rounded(integers, scales.view(np.float16).astype(np.float32), zeros, group_size).weights()


def output_error(inputs: Floats, weights: Floats, found: Floats) -> float:
    return float(np.square(inputs @ (weights - found).T).sum())


@pytest.mark.parametrize(("bits", "group_size", "columns"), [(4, 64, 256), (4, 128, 320), (8, 64, 200)])
def test_outputs_change_far_less_than_by_the_search_alone(bits: int, group_size: int, columns: int) -> None:
    inputs, weights = correlated_inputs(columns), random_weights(96, columns)
    error = output_error(
        inputs, weights, rounded(weights, inputs, bits=bits, group_size=group_size).weights()
    )
    plain = output_error(inputs, weights, searched(weights, bits, group_size))
    assert error < 0.3 * plain, f"{error / plain:.3f} of the error of the search"


def test_inputs_that_were_not_seen_gain_too() -> None:
    inputs, weights = correlated_inputs(256, tokens=2000), random_weights(96, 256)
    seen, unseen = inputs[:1000], inputs[1000:]
    error = output_error(unseen, weights, rounded(weights, seen).weights())
    assert error < 0.4 * output_error(unseen, weights, searched(weights, 4, 64))


def test_what_the_inputs_lack_is_made_up_for_on_inputs_that_were_not_seen() -> None:
    wished, weights = correlated_inputs(256, tokens=4000), random_weights(96, 256)
    mixing = np.random.default_rng(3).normal(0, 0.02, (256, 256)).astype(np.float32)
    # What rounding does to the layers below depends on the text too.
    inputs = np.add(wished, wished @ mixing, dtype=np.float32)
    aimed = rounded(weights, inputs[:3000], wished=wished[:3000]).weights()
    plain = rounded(weights, inputs[:3000]).weights()
    expected = wished[3000:] @ weights.T
    errors = [np.square(inputs[3000:] @ found.T - expected).sum() for found in (aimed, plain)]
    assert errors[0] < 0.5 * errors[1], errors


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_parts_of_rows_make_no_difference(threads: int) -> None:
    inputs, weights = correlated_inputs(192), random_weights(600, 192)
    whole = rounded(weights, inputs)
    again = rounded(weights, inputs, threads=threads)
    for one, other in ((whole.integers, again.integers), (whole.scales, again.scales)):
        np.testing.assert_array_equal(one, other)
    parts = join_rows([rounded(weights[:256], inputs), rounded(weights[256:], inputs)])
    np.testing.assert_array_equal(parts.zeros, whole.zeros)
    assert output_error(inputs, whole.weights(), parts.weights()) < 1e-2 * output_error(
        inputs, weights, whole.weights()
    )


def test_integers_zeros_and_scales_can_be_packed() -> None:
    inputs, weights = correlated_inputs(200), random_weights(64, 200)
    found = rounded(weights, inputs)
    assert found.integers.max() <= 15
    assert (found.zeros.min(), found.zeros.max()) >= (1, 1)
    assert found.scales.min() > 0
    np.testing.assert_array_equal(found.scales, found.scales.astype(np.float16))
    np.testing.assert_array_equal(dequantize(found.packed(4)), found.weights())


def test_columns_that_are_never_used_keep_their_weights() -> None:
    inputs, weights = correlated_inputs(128), random_weights(64, 128)
    inputs[:, ::3] = 0
    found = rounded(weights, inputs).weights()
    reach = np.abs(weights).max()
    assert np.abs(found - weights)[:, ::3].max() < reach / 4
    still = rounded(weights, np.zeros_like(inputs)).weights()
    assert np.abs(still - weights).max() < reach / 4


def test_the_range_search_counts_columns_by_their_importance() -> None:
    weights = random_weights(64, 64)
    weights[:, 5] *= 8  # stretches the range of every group
    importance = np.ones(64, np.float32)
    importance[5] = 1e-6
    found = _native.quantize_groups(weights, 4, 64, importance)
    spared = Rounded(found[0], found[1].view(np.float16).astype(np.float32), found[2], 64).weights()
    others = np.arange(64) != 5
    plain = searched(weights, 4, 64)
    assert np.square(spared - weights)[:, others].sum() < 0.9 * np.square(plain - weights)[:, others].sum()
    with pytest.raises(ValueError, match="one number per column"):
        _native.quantize_groups(weights, 4, 64, importance[:-1])
