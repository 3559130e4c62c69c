"""The native search against its definition in numpy, bit for bit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baichuan2_tpu import _native

Floats = NDArray[np.float32]
F = np.float32
SMALLEST = F(2.0**-24)
each_kernel = pytest.mark.parametrize("kernels", _native.kernel_names())


def lane_sum(values: Floats) -> np.float32:
    """Add up in 8 lanes, in the order that is part of the definition."""
    lanes = np.zeros(8, F)
    for row in values.reshape(-1, 8):
        lanes = lanes + row
    low = lanes[:4] + lanes[4:]
    return (low[0] + low[1]) + (low[2] + low[3])


class Group:
    """One group, padded with zeros to whole lanes."""

    def __init__(self, weights: Floats, bits: int) -> None:
        self.weights = np.concatenate([weights, np.zeros(-len(weights) % 8, F)])
        self.importance = np.abs(self.weights) + lane_sum(np.abs(self.weights)) / F(len(weights))
        self.levels = F((1 << bits) - 1)

    def steps(self, scale: np.float32, zero: np.float32) -> Floats:
        return np.clip(np.rint(self.weights * (F(1) / scale)), -zero, self.levels - zero).astype(F)

    def error(self, scale: np.float32, zero: np.float32) -> np.float32:
        difference = (self.weights - scale * self.steps(scale, zero)).astype(F)
        return lane_sum(difference * difference * self.importance)

    def search(self, step: np.float32) -> tuple[np.float32, np.float32]:
        low, high = min(self.weights.min(), F(0)), max(self.weights.max(), F(0))
        candidates = [
            self.with_range(low * (F(1) - step * F(i)), high * (F(1) - step * F(j)))
            for i in range(5)
            for j in range(5)
        ]
        error, scale, zero = min(candidates, key=lambda candidate: candidate[0])
        for _ in range(2):
            steps = self.steps(scale, zero)
            top = lane_sum(self.weights * steps * self.importance)
            bottom = lane_sum(steps * steps * self.importance)
            if not (top > 0 and bottom > 0):
                break
            fitted = to_scale(top / bottom)
            if not self.error(fitted, zero) < error:
                break
            error, scale = self.error(fitted, zero), fitted
        return scale, zero

    def with_range(self, low: np.float32, high: np.float32) -> tuple[np.float32, np.float32, np.float32]:
        low = min(low, -high * (F(1) / (self.levels - F(1))))
        scale = to_scale((high - low) * (F(1) / self.levels))
        zero = np.clip(np.rint(-low * (F(1) / scale)), F(1), self.levels)
        return self.error(scale, zero), scale, zero


def to_scale(value: np.float32) -> np.float32:
    return F(np.float16(max(value, SMALLEST)))


def quantize_by_definition(
    weights: Floats, bits: int, group_size: int
) -> tuple[NDArray[np.uint8], NDArray[np.float16], NDArray[np.uint8]]:
    rows, columns = weights.shape
    groups = -(-columns // group_size)
    integers = np.empty((rows, columns), np.uint8)
    scales, zeros = np.empty((rows, groups), np.float16), np.empty((rows, groups), np.uint8)
    for row in range(rows):
        for group in range(groups):
            part = slice(group * group_size, min((group + 1) * group_size, columns))
            values = Group(weights[row, part], bits)
            scale, zero = values.search(F(0.05) if bits == 4 else F(0.003))
            count = part.stop - part.start
            integers[row, part] = (values.steps(scale, zero) + zero)[:count]
            scales[row, group], zeros[row, group] = scale, zero
    return integers, scales, zeros


def assert_as_defined(weights: Floats, bits: int, kernels: str, group_size: int = 64) -> None:
    integers, scales, zeros = _native.quantize_groups(weights, bits, group_size, kernels=kernels)
    expected = quantize_by_definition(weights, bits, group_size)
    np.testing.assert_array_equal(scales.view(np.float16), expected[1])
    np.testing.assert_array_equal(zeros, expected[2])
    np.testing.assert_array_equal(integers, expected[0])
    assert zeros.min() >= 1
    assert (integers < 1 << bits).all()
    assert np.isfinite(scales.view(np.float16)).all()


def restored(weights: Floats, bits: int, group_size: int = 64) -> Floats:
    integers, scales, zeros = _native.quantize_groups(weights, bits, group_size)
    columns = weights.shape[1]
    wide_zeros = np.repeat(zeros.astype(F), group_size, axis=1)[:, :columns]
    wide_scales = np.repeat(scales.view(np.float16).astype(F), group_size, axis=1)[:, :columns]
    return (integers.astype(F) - wide_zeros) * wide_scales


@each_kernel
@settings(max_examples=40, deadline=None)
@given(
    bits=st.sampled_from([4, 8]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 200)),
    group_size=st.sampled_from([64, 128]),
    power=st.floats(-30, 10),
    shift=st.floats(-3, 3),
    seed=st.integers(0, 2**32),
)
def test_native_search_is_the_definition_bit_for_bit(
    kernels: str,
    *,
    bits: int,
    shape: tuple[int, int],
    group_size: int,
    power: float,
    shift: float,
    seed: int,
) -> None:
    weights = (np.random.default_rng(seed).normal(shift, 1, shape) * 2.0**power).astype(F)
    assert_as_defined(weights, bits, kernels, group_size)


@each_kernel
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "weights",
    [
        np.zeros(64),
        np.full(64, 0.37),
        np.full(64, -0.37),
        np.full(64, 1e-42),
        np.full(64, 2.0**-24),
        np.linspace(1, 2, 64),
        np.linspace(-2, -1, 64),
        np.full(64, 65504.0),
        np.full(64, -65504.0),
        np.linspace(-65504, 65504, 64),
        np.eye(1, 64)[0],
        -np.eye(1, 64)[0],
        np.where(np.arange(64) == 5, 1e4, 1e-4),
        np.tile([1.0, -1.0], 32),
    ],
    ids=lambda weights: f"{weights[0]:.3g}_{weights[-1]:.3g}",
)
def test_degenerate_groups_have_finite_scales_and_small_errors(
    kernels: str, bits: int, weights: np.ndarray
) -> None:
    group = weights.astype(F)[None]
    assert_as_defined(group, bits, kernels)
    reach = max(group.max(), F(0)) - min(group.min(), F(0))
    error = np.abs(restored(group, bits) - group).max()
    # Where clipping an end pays, that end is off by up to a step.
    allowed = max(reach / ((1 << bits) - 2), SMALLEST)
    assert error <= allowed, f"largest error {error} of a range of {reach}"


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.07), (8, 0.02)])
def test_the_search_beats_the_plain_range(bits: int, gain: float) -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, (64, 1024)).astype(F)
    groups = weights.reshape(-1, 64)
    low, levels = groups.min(axis=1, keepdims=True), (1 << bits) - 1
    scale = (groups.max(axis=1, keepdims=True) - low) / levels
    zero = np.rint(-low / scale)
    plain = (np.clip(np.rint(groups / scale) + zero, 0, levels) - zero) * scale
    plain_error = np.square(plain - groups).sum()
    error = np.square(restored(weights, bits) - weights).sum()
    assert error < (1 - gain) * plain_error, f"{error / plain_error:.4f} of the plain range's squared error"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 7e4])
def test_a_weight_beyond_float16_is_refused_with_its_place(value: float) -> None:
    weights = np.ones((3, 100), F)
    weights[2, 70] = value
    with pytest.raises(ValueError, match="row 2, column 70"):
        _native.quantize_groups(weights, 4, 64)


def test_wrong_arguments_are_refused() -> None:
    weights = np.ones((2, 64), F)
    with pytest.raises(ValueError, match="bits must be 4 or 8"):
        _native.quantize_groups(weights, 5, 64)
    with pytest.raises(ValueError, match="group_size must be above 0"):
        _native.quantize_groups(weights, 4, 0)
    with pytest.raises(TypeError):
        _native.quantize_groups(weights.T, 4, 64)
