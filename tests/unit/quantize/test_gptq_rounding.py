"""The native rounding of a block against its definition in numpy, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from baichuan2_tpu import _native

Floats = NDArray[np.float32]
F = np.float32


class Block:
    """Arguments of the native function."""

    def __init__(self, seed: int, rows: int = 3, columns: int = 40, groups: int = 2, bits: int = 4) -> None:
        random = np.random.default_rng(seed)
        self.values = random.normal(0, 1, (rows, columns)).astype(F)
        self.targets = random.normal(0, 1, (rows, columns)).astype(F)
        self.feedback = random.normal(0, 0.2, (columns, columns)).astype(F)
        self.scales = random.uniform(0.01, 0.3, (rows, groups)).astype(F)
        self.zeros = random.integers(1, 1 << bits, (rows, groups)).astype(np.uint8)
        self.group_of = random.integers(0, groups, columns).astype(np.int32)
        self.bits = bits

    def native(self, kernels: str = "") -> tuple[NDArray[np.uint8], Floats]:
        return _native.round_with_feedback(
            self.values,
            self.targets,
            self.feedback,
            self.scales,
            self.zeros,
            self.group_of,
            self.bits,
            kernels,
        )

    def by_definition(self) -> tuple[NDArray[np.uint8], Floats]:
        values, levels = self.values.copy(), F((1 << self.bits) - 1)
        integers, errors = np.empty(values.shape, np.uint8), np.empty(values.shape, F)
        for k, group in enumerate(self.group_of):
            scale, zero = self.scales[:, group], self.zeros[:, group].astype(F)
            steps = np.rint(np.clip(values[:, k] * (F(1) / scale), -zero, levels - zero))
            errors[:, k] = self.targets[:, k] - scale * steps
            integers[:, k] = steps + zero
            values[:, k + 1 :] += errors[:, k, None] * self.feedback[k, k + 1 :]
        return integers, errors


@pytest.mark.parametrize("kernels", _native.kernel_names())
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 5),
    columns=st.integers(1, 130),
    groups=st.integers(1, 4),
    bits=st.sampled_from([4, 8]),
)
def test_native_rounding_is_the_definition_bit_for_bit(
    kernels: str, *, seed: int, rows: int, columns: int, groups: int, bits: int
) -> None:
    block = Block(seed, rows, columns, groups, bits)
    integers, errors = block.native(kernels)
    expected_integers, expected_errors = block.by_definition()
    np.testing.assert_array_equal(integers, expected_integers)
    np.testing.assert_array_equal(errors, expected_errors)


def test_a_value_far_outside_the_range_takes_its_end() -> None:
    block = Block(0, rows=1, columns=2, groups=1)
    block.values[:] = [[1e30, -1e30]]
    block.feedback[:] = 0
    np.testing.assert_array_equal(block.native()[0], [[15, 0]])


@pytest.mark.parametrize("name", ["targets", "feedback", "scales", "zeros", "group_of"])
def test_arrays_that_do_not_fit_are_refused(name: str) -> None:
    block = Block(0)
    setattr(block, name, getattr(block, name)[:-1])
    with pytest.raises(ValueError, match="do not fit"):
        block.native()


def test_kernels_that_this_processor_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"no kernels named 'avx1024' on this machine; it has .*scalar"):
        Block(0).native("avx1024")


def test_a_group_without_a_scale_and_other_bits_are_refused() -> None:
    block = Block(0)
    block.group_of[3] = 2
    with pytest.raises(ValueError, match="has no scale"):
        block.native()
    with pytest.raises(ValueError, match="4 or 8"):
        Block(0, bits=5).native()
