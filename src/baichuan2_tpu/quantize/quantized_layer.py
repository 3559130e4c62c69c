"""What a calibrated method makes of one layer, or of the head, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.weights import PackedLinear

__all__ = ["QuantizedLayer"]


@dataclass(frozen=True, slots=True)
class QuantizedLayer:
    """Linears in integers, and the norms whose weights differ from the float model's; both by name."""

    packed: Mapping[str, PackedLinear] = field(default_factory=dict[str, PackedLinear])
    norms: Mapping[str, NDArray[np.float32]] = field(default_factory=dict[str, NDArray[np.float32]])
