"""What every form of foreign linears gives, and the checks of tensors that they share.

Not here: the forms (``gptq_form`` and its neighbours).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.foreign.grouped import GroupedRows
from baichuan2_tpu.checkpoint.foreign.settings import FLOAT_ADVICE
from baichuan2_tpu.checkpoint.source import TensorSource
from baichuan2_tpu.checkpoint.weights import WORD_BITS
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = [
    "FLOATS",
    "INTEGERS",
    "LinearForm",
    "LinearPlace",
    "assign_groups",
    "check_bits",
    "check_part",
    "read_order",
]

FLOATS = ("BF16", "F16", "F32")
INTEGERS = ("I32",)
_OTHER_BITS = (2, 3, 5, 6)
_MOST_COLUMNS = 1 << 20


@dataclass(frozen=True, slots=True)
class LinearPlace:
    """What is known of a linear before its numbers are read.

    Shapes: ``shape`` is (N, K); ``groups`` (K,), the group of every column, or None where weights are no
    integers with a scale.
    """

    shape: tuple[int, int]
    bits: int
    groups: NDArray[np.int64] | None


class LinearForm(Protocol):
    """How one tool packs linears. Raises: CheckpointError for tensors that do not fit each other."""

    title: str
    """Names the form, for people: "GPTQ"."""

    main: str
    """The tensor that every linear of this form has, behind its name."""

    parts: tuple[str, ...]
    """All tensors that a linear may have, ``main`` among them."""

    def place(self, name: str) -> LinearPlace:
        """Check the tensors of a linear and tell its sizes and groups."""
        ...

    def read(self, name: str, start: int, stop: int) -> GroupedRows | NDArray[np.float32]:
        """Return rows of a linear: integers with their scales, or floats where there are none."""
        ...


def check_part(
    source: TensorSource, name: str, dtypes: Sequence[str], shape: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Check that a tensor is there, of one of the types, two-dimensional or of ``shape``; return its shape.

    Raises: CheckpointError.
    """
    info = source.tensors.get(name)
    if info is None:
        raise CheckpointError(
            f"tensor {quote(name)} is missing beside its neighbours; fetch the checkpoint again"
        )
    if info.dtype not in dtypes:
        raise CheckpointError(
            f"{info.file}: tensor {quote(name)} is {info.dtype}, allowed is {' or '.join(dtypes)}; "
            "fetch the checkpoint again"
        )
    if len(info.shape) != 2 if shape is None else info.shape != shape:
        expected = "two dimensions are" if shape is None else f"{shape} is"
        raise CheckpointError(
            f"{info.file}: tensor {quote(name)} has shape {info.shape}, {expected} expected beside its "
            "neighbours; fetch the checkpoint again"
        )
    return info.shape


def check_bits(source: TensorSource, name: str, words: int, columns: int) -> int:
    """Return the bits of integers of which ``columns`` fill ``words`` words of 32 bits: 4 or 8.

    Raises: CheckpointError for others, and where the words hold no whole number of them.
    """
    bits, rest = divmod(words * WORD_BITS, columns) if 0 < columns <= _MOST_COLUMNS else (0, 0)
    if bits in (4, 8) and not rest:
        return bits
    where = f"{source.tensors[name].file}: tensor {quote(name)}"
    if bits in _OTHER_BITS and not rest:
        raise CheckpointError(f"{where} has weights of {bits} bits, allowed are 4 and 8; {FLOAT_ADVICE}")
    raise CheckpointError(
        f"{where} has {words} words of 32 bits for {columns} columns, which is neither 4 nor 8 bits each; "
        "fetch the checkpoint again"
    )


def read_order(source: TensorSource, name: str, columns: int, count: int) -> NDArray[np.int64] | None:
    """Return the group of every column as a tensor gives it; None where it is missing or was never filled in.

    Raises: CheckpointError for a group that is not there.
    """
    if name not in source.tensors:
        return None
    check_part(source, name, (*INTEGERS, "I64"), (columns,))
    order = source.read(name).astype(np.int64)
    # Zeros alone stand for no order to ExLlama's readers, -1 to those of compressed-tensors.
    if (order == -1).all() or (count > 1 and not order.any()):
        return None
    if order.min() < 0 or order.max() >= count:
        raise CheckpointError(
            f"{source.tensors[name].file}: tensor {quote(name)} names groups {order.min()} to {order.max()}, "
            f"there are 0 to {count - 1}; fetch the checkpoint again"
        )
    return order


def assign_groups(
    source: TensorSource, name: str, columns: int, *, count: int, size: int | None
) -> NDArray[np.int64]:
    """Return the group of every column where they follow each other: ``count`` groups of ``size`` columns.

    Raises: CheckpointError when the columns do not fill that many groups.
    """
    size = columns if size is None else size
    if -(-columns // size) != count:
        raise CheckpointError(
            f"{source.tensors[name].file}: tensor {quote(name)} has {count} groups, its {columns} columns "
            f"make {-(-columns // size)} of {size}; fetch the checkpoint again"
        )
    return np.arange(columns, dtype=np.int64) // size
