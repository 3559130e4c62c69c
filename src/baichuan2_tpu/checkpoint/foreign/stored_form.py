"""What the integers of a foreign checkpoint have in common, and whether our own form can keep them.

Not here: repacking (``quantize``).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from baichuan2_tpu.checkpoint.foreign.form import LinearPlace
from baichuan2_tpu.checkpoint.foreign.grouped import is_in_groups
from baichuan2_tpu.config import GROUP_MULTIPLE

__all__ = ["StoredForm", "describe_form"]

Bits = Literal[4, 8]
_GROUP_SIZES = (2 * GROUP_MULTIPLE, GROUP_MULTIPLE)
"""What stored groups are kept as; larger ones are cut into several with the same scale and zero."""


@dataclass(frozen=True, slots=True)
class StoredForm:
    """The settings that keep every integer of a checkpoint as it is.

    ``reason`` is empty, or says why no settings do.
    """

    title: str
    bits: Bits
    group_size: int
    head_bits: Bits | None
    """None for a head that is stored as floats."""
    reason: str = ""
    floats: int = 0
    """Linears of the layers that are stored as floats."""


def describe_form(title: str, linears: Sequence[LinearPlace | None], head: LinearPlace | None) -> StoredForm:
    """Find the settings for the packed linears of the layers and, where it is packed, the head.

    None stands for one that is stored as floats.
    """
    layers = [place for place in linears if place is not None]
    bits = _common_bits(layers)
    head_bits = None if head is None else _common_bits([head])
    groups = [place.groups for place in [*layers, *([head] if head else [])]]
    known = [group for group in groups if group is not None]
    if len(known) < len(groups):
        return StoredForm(title, bits, GROUP_MULTIPLE, head_bits, "its weights are not integers with a scale")
    for size in _GROUP_SIZES:
        if all(is_in_groups(group, size) for group in known):
            return StoredForm(title, bits, size, head_bits, floats=len(linears) - len(layers))
    reason = f"its groups are not multiples of {GROUP_MULTIPLE} columns"
    if any((group[1:] < group[:-1]).any() for group in known):
        reason = "its columns are in another order than their groups (desc_act)"
    return StoredForm(title, bits, GROUP_MULTIPLE, head_bits, reason)


def _common_bits(places: Iterable[LinearPlace]) -> Bits:
    """Return the bits that hold the integers of all: those of 4 bits fit into 8."""
    return 4 if all(place.bits == 4 for place in places) else 8
