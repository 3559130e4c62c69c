"""Keep the integers of a checkpoint that another tool quantised: its settings, and its linears in our form.

Not here: reading them (``checkpoint.foreign``), quantising floats (``linear``).
"""

from __future__ import annotations

import numpy as np

from baichuan2_tpu.checkpoint.float_checkpoint import FloatCheckpoint
from baichuan2_tpu.checkpoint.foreign.stored_form import StoredForm
from baichuan2_tpu.checkpoint.packing import pack_linear
from baichuan2_tpu.checkpoint.weights import PackedLinear
from baichuan2_tpu.config import GROUP_MULTIPLE, HEAD_BITS, Method, QuantizationConfig
from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quantize.plan import quantization_settings

__all__ = ["choose_settings", "describe_repacking", "keeps_integers", "repack_linear"]

_DEFAULT_BITS = 4
_SECOND_BITS = 8
"""Where integers cannot be kept: rounding a second time to 4 bits would lose as much again as the first."""

_LIMIT = float(np.finfo(np.float16).max)


def choose_settings(
    stored: StoredForm | None,
    bits: int | None,
    group_size: int | None,
    head_bits: int | None,
    method: Method,
) -> QuantizationConfig:
    """Complete what a user asks for: with what keeps the integers of the source, or with our defaults.

    Raises: RequestError naming the value and what is allowed.
    """
    head = HEAD_BITS
    if stored is None or method != "search":
        own_bits, own_group = _DEFAULT_BITS, GROUP_MULTIPLE
    elif stored.reason:
        own_bits, own_group = _SECOND_BITS, GROUP_MULTIPLE
    else:
        own_bits, own_group, head = stored.bits, stored.group_size, stored.head_bits or HEAD_BITS
    return quantization_settings(
        own_bits if bits is None else bits,
        own_group if group_size is None else group_size,
        head if head_bits is None else head_bits,
        method=method,
    )


def keeps_integers(stored: StoredForm, settings: QuantizationConfig) -> bool:
    """Tell whether the integers of another tool's layers are kept by these settings."""
    return not stored.reason and settings.method == "search" and _holds(stored, settings)


def describe_repacking(checkpoint: FloatCheckpoint, settings: QuantizationConfig) -> str | None:
    """Say what becomes of the integers of another tool; None for floats."""
    stored = checkpoint.stored
    if stored is None:
        return None
    start = f"{checkpoint.path} was quantised by another tool ({stored.title}, {stored.bits} bits)"
    chosen = f"{settings.bits} bits in groups of {settings.group_size}"
    if not keeps_integers(stored, settings):
        reason = f"cannot be kept: it has {stored.bits} bits in groups of {stored.group_size}"
        if stored.reason:
            reason = f"cannot be kept: {stored.reason}"
        elif _holds(stored, settings):
            reason = f"are not kept: --method {settings.method} chooses others"
        again = f"{start}; its integers {reason}. Its weights are quantised again, to {chosen}"
        if checkpoint.adapters:  # no file holds what the result could be compared with
            return again
        return (
            f"{again}; what that costs is measured by baichuan2 evaluate MODEL --against SRC "
            "--against-engine float"
        )
    groups = f"in groups of {settings.group_size}"
    others = f"; linears that are floats ({stored.floats}) are quantised" if stored.floats else ""
    if stored.head_bits is not None and stored.head_bits <= settings.head_bits:
        return f"{start}; all of its integers are kept, {groups}{others}"
    return (
        f"{start}; the integers of its layers are kept, {groups}, and its head is quantised to "
        f"{settings.head_bits} bits{others}"
    )


def _holds(stored: StoredForm, settings: QuantizationConfig) -> bool:
    """Tell whether there are enough bits, and groups that divide the stored ones."""
    return settings.bits >= stored.bits and stored.group_size % settings.group_size == 0


def repack_linear(
    checkpoint: FloatCheckpoint, name: str, *, bits: int, group_size: int
) -> PackedLinear | None:
    """Return the integers of a linear in our form, or None where the source has none that fit it.

    Scales are rounded to float16 where they are stored in another type.
    Raises: CheckpointError naming the tensor whose scales are not finite or beyond float16.
    """
    rows = checkpoint.read_grouped(name, bits=bits, group_size=group_size)
    regrouped = None if rows is None else rows.regroup(group_size)
    checkpoint.release(name)
    if rows is None or regrouped is None:
        return None
    scales, zeros = regrouped
    if not (np.abs(scales) <= _LIMIT).all():
        raise CheckpointError(
            f"{checkpoint.describe(name)}: a scale of {name} is not a number that float16 holds; "
            "fetch the checkpoint again"
        )
    return pack_linear(rows.codes, scales.astype(np.float16), zeros, bits=bits, group_size=group_size)
