"""Ways to turn positions other than the plain one, which no engine here computes.

Not here: the other keys of a model (``config``).
Source: ``ROPE_INIT_FUNCTIONS`` of transformers 4.57; ``rope_parameters`` of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from baichuan2_tpu.errors import CheckpointError
from baichuan2_tpu.quoting import quote

__all__ = ["check_rope_scaling"]

_UNCHANGED_BY_ONE = ("linear", "dynamic")
"""Scalings that a factor of 1 leaves without effect."""


def check_rope_scaling(values: Mapping[str, object], file: str) -> None:
    """Check that a ``config.json`` asks for plain positions, in all of a head.

    Raises: CheckpointError for a scaling: a model that was trained with one is wrong without it.
    """
    for key in ("rope_scaling", "rope_parameters"):
        value = values.get(key)
        nested = cast("dict[str, object]", value) if isinstance(value, dict) else {"rope_type": value}
        kind, factor = nested.get("rope_type", nested.get("type")), nested.get("factor")
        is_plain = kind in (None, "default") or (kind in _UNCHANGED_BY_ONE and factor == 1)
        if not is_plain:
            raise CheckpointError(
                f"{file}: {key} asks for scaled positions ({quote(kind)}, factor {quote(factor)}), which "
                "baichuan2-tpu does not compute; without them its answers would be wrong: take a model "
                "that has none"
            )
        for part in (values, nested):
            if part.get("partial_rotary_factor") not in (None, 1):
                raise CheckpointError(
                    f"{file}: partial_rotary_factor is {quote(part['partial_rotary_factor'])}, allowed is 1; "
                    "take a Baichuan or Llama model"
                )
