"""Every kernel of every instruction set against float64 numpy, on shapes that fill no tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from baichuan2_tpu import _native
from baichuan2_tpu.checkpoint.packing import dequantize, pack_linear
from baichuan2_tpu.checkpoint.weights import PackedLinear

GROUP = 64
KERNELS = _native.kernel_names()
NARROW, WIDE = 127, 32639
GROUPS_PER_WIDE = 8
FORMS = [(4, False), (8, False), (8, True)]
"""Bits of the weights, and whether every group of activations is wide."""
each_form = pytest.mark.parametrize(("bits", "is_all_wide"), FORMS)
each_kernel = pytest.mark.parametrize("kernels", KERNELS)


def random_linear(random: np.random.Generator, rows: int, columns: int, bits: int) -> PackedLinear:
    levels, groups = 1 << bits, -(-columns // GROUP)
    return pack_linear(
        random.integers(0, levels, (rows, columns)).astype(np.uint8),
        random.uniform(0.001, 0.02, (rows, groups)).astype(np.float16),
        random.integers(1, levels, (rows, groups)).astype(np.uint8),
        bits=bits,
        group_size=GROUP,
    )


def multiply(
    kernels: str,
    linear: PackedLinear,
    x: NDArray[np.float32],
    *,
    is_exact: bool,
    is_all_wide: bool = False,
) -> NDArray[np.float32]:
    scales = linear.scales.view(np.uint16)
    arrays = (linear.qweight, linear.qzeros, scales)
    return _native.matmul(kernels, *arrays, linear.bits, linear.group_size, x, is_exact, is_all_wide)


def read_quantized(
    kernels: str, x: NDArray[np.float32], bits: int, *, is_all_wide: bool
) -> NDArray[np.float64]:
    """Return what the quantised activations stand for."""
    codes, scales, _ = _native.quantize_activations(kernels, x, bits, is_all_wide)
    values = codes.astype(np.float64) * np.repeat(scales.astype(np.float64), GROUP, axis=1)
    return values[:, : x.shape[1]]


@each_kernel
@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9).map(lambda n: 8 * n),
    columns=st.integers(1, 80).map(lambda n: 8 * n),
    tokens=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 13, 18, 19, 25, 40]),
    form=st.sampled_from(FORMS),
    seed=st.integers(0, 1000),
)
def test_matmul_is_the_float64_product(
    kernels: str, *, rows: int, columns: int, tokens: int, form: tuple[int, bool], seed: int
) -> None:
    bits, is_all_wide = form
    random = np.random.default_rng(seed)
    linear = random_linear(random, rows, columns, bits)
    x = random.normal(0, 1, (tokens, columns)).astype(np.float32)
    weights = dequantize(linear).astype(np.float64)
    # The error of a float32 sum grows with the size of its terms, not with their sum.
    quantized = read_quantized(kernels, x, bits, is_all_wide=is_all_wide)
    for is_exact, inputs in [(True, x.astype(np.float64)), (False, quantized)]:
        size = np.abs(inputs) @ np.abs(weights).T + 1e-30
        result = multiply(kernels, linear, x, is_exact=is_exact, is_all_wide=is_all_wide)
        error = (np.abs(result - inputs @ weights.T) / size).max()
        assert error < 3e-6, f"exact={is_exact}: {error:.1e}"


@each_kernel
@each_form
@pytest.mark.parametrize("tokens", [1, 6, 19])
def test_no_sum_overflows_at_the_ends_of_the_range(
    kernels: str, *, bits: int, is_all_wide: bool, tokens: int
) -> None:
    """u8 x s8 pairs saturate in other engines; here the worst case of every operand must stay exact."""
    top = (1 << bits) - 1
    for code in (0, top):
        for zero in (1, top):
            for sign in (1.0, -1.0):
                rows, columns = 16, 4 * GROUP
                linear = pack_linear(
                    np.full((rows, columns), code, np.uint8),
                    np.full((rows, 4), 65504, np.float16),
                    np.full((rows, 4), zero, np.uint8),
                    bits=bits,
                    group_size=GROUP,
                )
                x = np.full((tokens, columns), sign, np.float32)
                x[:, :GROUP] *= 2  # wide where not all are
                expected = sign * 65504.0 * (code - zero) * (columns + GROUP)
                result = multiply(kernels, linear, x, is_exact=False, is_all_wide=is_all_wide)
                np.testing.assert_allclose(result, expected, rtol=1e-5, atol=65504.0 * columns * top * 1e-6)


@each_form
@pytest.mark.parametrize("tokens", [1, 2, 17])
def test_the_vector_instruction_sets_multiply_to_the_same_bits(
    *, bits: int, is_all_wide: bool, tokens: int
) -> None:
    """A single token has loops of its own, which a prompt does not reach."""
    names = [name for name in KERNELS if name != "scalar"]
    if len(names) < 2:
        pytest.skip(f"this processor runs {', '.join(KERNELS)}: nothing to compare")
    random = np.random.default_rng(tokens)
    for rows, columns in [(8, 8), (16, 64), (40, 72), (136, 1032)]:
        linear = random_linear(random, rows, columns, bits)
        x = random.normal(0, 1, (tokens, columns)).astype(np.float32)
        results = [multiply(name, linear, x, is_exact=False, is_all_wide=is_all_wide) for name in names]
        for result in results[1:]:
            np.testing.assert_array_equal(result, results[0])


@each_kernel
@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    magnitude=st.sampled_from([0.0, 1e-45, 1e-38, 1e-30, 1e-20, 1.0, 1e20, 1e30, 3e38]),
    seed=st.integers(0, 100),
)
def test_activation_codes_stay_in_range_at_any_magnitude(
    kernels: str, form: tuple[int, bool], magnitude: float, seed: int
) -> None:
    bits, is_all_wide = form
    random = np.random.default_rng(seed)
    x = (random.uniform(-1, 1, (7, 150)) * magnitude).astype(np.float32)
    codes, scales, offsets = _native.quantize_activations(kernels, x, bits, is_all_wide)
    most = NARROW if bits == 4 else WIDE
    assert codes.min() >= -most
    assert codes.max() <= most
    assert np.isfinite(scales).all()
    sums = codes.reshape(7, -1, GROUP).sum(axis=2, dtype=np.int64)
    np.testing.assert_array_equal(offsets, -sums)
    if magnitude > 1e-29:
        step = np.repeat(scales.astype(np.float64), GROUP, axis=1)[:, :150]
        assert (np.abs(codes[:, :150] * step - x) <= step * 0.51).all()


def quantize_plainly(
    x: NDArray[np.float32], bits: int, *, is_all_wide: bool
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return codes and scales by their definition, for columns that are full groups of numbers above 0."""
    groups = x.reshape(len(x), -1, GROUP)
    largest = np.abs(groups).max(axis=2)
    wide = np.full(largest.shape, is_all_wide)
    if bits == 8 and not is_all_wide:
        count = -(-largest.shape[1] // GROUPS_PER_WIDE)
        wide = largest >= np.sort(largest, axis=1)[:, -count, None]
    ends = np.where(wide, np.float32(WIDE), np.float32(NARROW))
    codes = np.rint(groups * (ends / largest)[:, :, None])
    return codes.reshape(x.shape).astype(np.int16), largest / ends


@each_kernel
@each_form
@pytest.mark.parametrize("groups", [1, 7, 8, 9, 43])
@pytest.mark.parametrize("tokens", [1, 23])
def test_activations_are_the_integers_of_the_definition(
    kernels: str, *, bits: int, is_all_wide: bool, groups: int, tokens: int
) -> None:
    random = np.random.default_rng(groups)
    x = random.normal(0, 3, (tokens, groups * GROUP)).astype(np.float32)
    x *= np.exp(random.normal(0, 1, x.shape)).astype(np.float32)
    codes, scales, offsets = _native.quantize_activations(kernels, x, bits, is_all_wide)
    expected_codes, expected_scales = quantize_plainly(x, bits, is_all_wide=is_all_wide)
    np.testing.assert_array_equal(codes, expected_codes)
    np.testing.assert_array_equal(scales, expected_scales)
    sums = expected_codes.reshape(tokens, groups, GROUP).sum(axis=2, dtype=np.int64)
    np.testing.assert_array_equal(offsets, -sums)


@each_kernel
def test_groups_of_zeros_are_never_wide(kernels: str) -> None:
    x = np.zeros((2, 16 * GROUP), np.float32)
    x[1, :3] = 1.0
    codes, scales, _ = _native.quantize_activations(kernels, x, 8)
    assert np.unique(codes).tolist() == [0, WIDE]
    assert np.count_nonzero(scales) == 1


@each_form
def test_activations_are_the_same_integers_on_every_instruction_set(*, bits: int, is_all_wide: bool) -> None:
    x = np.random.default_rng(0).normal(0, 3, (23, 200)).astype(np.float32)
    if KERNELS == ["scalar"]:
        pytest.skip("this processor runs the scalar kernels only, so there is nothing to compare them with")
    expected = _native.quantize_activations("scalar", x, bits, is_all_wide)
    for kernels in KERNELS:
        for array, expected_array in zip(
            _native.quantize_activations(kernels, x, bits, is_all_wide), expected, strict=True
        ):
            np.testing.assert_array_equal(array, expected_array)


def hadamard(size: int) -> NDArray[np.float64]:
    """Return the matrix of the transform: blocks as long as the greatest power of two in ``size``."""
    block = np.ones((1, 1))
    while size % (2 * len(block)) == 0:
        block = np.block([[block, block], [block, -block]])
    return np.kron(np.eye(size // len(block)), block).astype(np.float64)


def hold(x: NDArray[np.float32], kv_bits: int, kernels: str) -> NDArray[np.float64]:
    """Return what keys or values (S, heads, D) are once a cache holds them."""
    if kv_bits == 16:
        return x.astype(np.float16).astype(np.float64)
    size = x.shape[-1]
    codes, scales = _native.quantize_head_rows(kernels, x.reshape(-1, size))
    transform = hadamard(size)
    rows = (codes.astype(np.float64) - 128) * scales[:, None].astype(np.float64) @ transform
    return rows.reshape(x.shape) / (size & -size)


def plain_attention(
    queries: NDArray[np.float32],
    keys: NDArray[np.float64],
    values: NDArray[np.float64],
    slopes: NDArray[np.float32],
) -> NDArray[np.float64]:
    held = [keys, values]
    tokens, heads, size = queries.shape
    context, kv_heads, _ = keys.shape
    out = np.empty(queries.shape, np.float64)
    for token in range(tokens):
        seen = context - tokens + token + 1
        for head in range(heads):
            shared = head * kv_heads // heads
            scores = held[0][:seen, shared] @ queries[token, head] / np.sqrt(size)
            if slopes.size:
                scores += slopes[head] * (np.arange(seen) - (seen - 1))
            weights = np.exp(scores - scores.max())
            out[token, head] = weights @ held[1][:seen, shared] / weights.sum()
    return out


@each_kernel
@settings(max_examples=40, deadline=None)
@given(
    tokens=st.integers(1, 30),
    history=st.sampled_from([0, 1, 7, 63, 64, 65, 190]),
    heads=st.sampled_from([(1, 1), (4, 4), (6, 2)]),
    size=st.sampled_from([8, 24, 64, 72, 128]),
    is_alibi=st.booleans(),
    kv_bits=st.sampled_from([8, 16]),
    tile_tokens=st.integers(1, 16),
    seed=st.integers(0, 100),
)
def test_attention_is_the_float64_softmax_whatever_the_tiles(
    kernels: str,
    *,
    tokens: int,
    history: int,
    heads: tuple[int, int],
    size: int,
    is_alibi: bool,
    kv_bits: int,
    tile_tokens: int,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    queries = random.normal(0, 2, (tokens, heads[0], size)).astype(np.float32)
    keys, values = (
        random.normal(0, 1, (history + tokens, heads[1], size)).astype(np.float32) for _ in range(2)
    )
    slopes = (2.0 ** -np.arange(1, heads[0] + 1)).astype(np.float32) if is_alibi else np.empty(0, np.float32)
    held = hold(keys, kv_bits, kernels), hold(values, kv_bits, kernels)
    result = _native.attend(kernels, queries, keys, values, slopes, tile_tokens, kv_bits)
    error = np.abs(result - plain_attention(queries, *held, slopes)).max()
    assert error < (5e-6 if kv_bits == 16 else 3e-4), f"{error:.1e}"
    one_by_one = _native.attend(kernels, queries, keys, values, slopes, 1, kv_bits)
    np.testing.assert_array_equal(result, one_by_one)


@each_kernel
@settings(max_examples=30, deadline=None)
@given(
    size=st.sampled_from([8, 24, 64, 128, 256]),
    magnitude=st.sampled_from([0.0, 1e-38, 1e-30, 1e-3, 1.0, 1e4, 3e38]),
    seed=st.integers(0, 100),
)
def test_codes_of_a_head_are_within_half_a_step_and_in_range_at_any_magnitude(
    kernels: str, size: int, magnitude: float, seed: int
) -> None:
    x = (np.random.default_rng(seed).uniform(-1, 1, (5, size)) * magnitude).astype(np.float32)
    codes, scales = _native.quantize_head_rows(kernels, x)
    assert codes.min() >= 1
    assert np.isfinite(scales).all()
    transformed = np.clip(x, -65504, 65504).astype(np.float64) @ hadamard(size)
    step = scales[:, None].astype(np.float64)
    error = np.abs((codes.astype(np.float64) - 128) * step - transformed)
    assert (error <= step * 0.501 + np.abs(transformed).max() * 1e-5 + 1e-28).all()


def test_codes_of_a_head_are_the_same_on_every_instruction_set() -> None:
    x = np.random.default_rng(0).normal(0, 3, (23, 72)).astype(np.float32)
    expected = _native.quantize_head_rows("scalar", x)
    for kernels in KERNELS:
        for array, expected_array in zip(_native.quantize_head_rows(kernels, x), expected, strict=True):
            np.testing.assert_array_equal(array, expected_array)


@pytest.mark.parametrize("size", [8, 64, 72, 128, 256])
def test_attention_over_int8_has_the_same_integers_on_every_instruction_set(size: int) -> None:
    """A set without fused multiply-add differs in the last digits; a wrong sum would differ more."""
    random = np.random.default_rng(0)
    queries = random.normal(0, 2, (9, 6, size)).astype(np.float32)
    keys, values = (random.normal(0, 1, (150, 2, size)).astype(np.float32) for _ in range(2))
    no_slopes = np.empty(0, np.float32)
    expected = _native.attend("scalar", queries, keys, values, no_slopes, 4, 8)
    results = [_native.attend(name, queries, keys, values, no_slopes, 4, 8) for name in KERNELS[:-1]]
    for result in results:
        np.testing.assert_allclose(result, expected, atol=2e-5)
        np.testing.assert_array_equal(result, results[0])


@each_kernel
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_no_sum_of_attention_overflows_at_the_ends_of_the_range(kernels: str, sign: float) -> None:
    """A spike becomes a constant by the transform: all codes and all numbers of the queries at their ends."""
    spike = np.zeros((1, 1, 256), np.float32)
    spike[..., 0] = 3.0
    keys, values = np.repeat(sign * spike, 64, axis=0), np.repeat(spike, 64, axis=0)
    result = _native.attend(kernels, spike, keys, values, np.empty(0, np.float32), 1, 8)
    np.testing.assert_allclose(result, spike, atol=1e-3)


@each_kernel
@pytest.mark.parametrize("kv_bits", [8, 16])
def test_an_infinite_key_or_value_does_not_reach_earlier_tokens(kernels: str, kv_bits: int) -> None:
    """Values that leave float16's range are stored as its ends: 0 * infinity would spoil masked tokens."""
    random = np.random.default_rng(0)
    queries, keys, values = (random.normal(0, 1, (12, 2, 32)).astype(np.float32) for _ in range(3))
    clean = _native.attend(kernels, queries, keys, values, np.empty(0, np.float32), 12, kv_bits)
    values[8:], keys[8:] = np.inf, np.nan
    spoiled = _native.attend(kernels, queries, keys, values, np.empty(0, np.float32), 12, kv_bits)
    np.testing.assert_array_equal(spoiled[:8], clean[:8])


@each_kernel
def test_swiglu_is_right_for_any_gate(kernels: str) -> None:
    gate = np.concatenate([np.linspace(-200, 200, 997), [0.0, -87.0, 87.0, 88.5]]).astype(np.float32)[None]
    up = np.random.default_rng(0).normal(0, 1, gate.shape).astype(np.float32)
    wide = gate.astype(np.float64)
    with np.errstate(over="ignore"):
        expected = wide / (1 + np.exp(-wide)) * up
    np.testing.assert_allclose(_native.swiglu(kernels, gate, up), expected, rtol=2e-6, atol=1e-34)


@each_kernel
def test_float16_rounds_to_nearest_even_and_stays_finite(kernels: str) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    exact = bits[np.isfinite(bits)].astype(np.float32)
    between = ((exact[:-1].astype(np.float64) + exact[1:]) / 2).astype(np.float32)
    x = np.concatenate([exact, between, np.array([1e-9, -1e-9, 7e4, -1e30, np.inf, -np.inf], np.float32)])[
        None
    ]
    expected = np.clip(x, -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(_native.round_to_half(kernels, x), expected)
