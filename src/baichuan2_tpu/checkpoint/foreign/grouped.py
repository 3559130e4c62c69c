"""Integer weights of a linear layer, whatever tool packed them, and what they are in our own groups.

Not here: how each tool packs them (``gptq_form`` and its neighbours), our packing (``packing``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

__all__ = ["GroupedRows", "is_in_groups"]


@dataclass(frozen=True, slots=True)
class GroupedRows:
    """Rows of one linear: the weight of row n and column k is ``scales[n, g] * (codes[n, k] - zeros[n, g])``.

    Shapes: ``codes`` (N, K) from 0 to 2^bits - 1; ``scales`` and ``zeros`` (N, G); ``groups`` (K,) has the
    g of every column, in any order.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]
    groups: NDArray[np.int64]
    bits: int

    def dequantize(self) -> NDArray[np.float32]:
        """Return the weights. Shapes: (N, K)."""
        steps = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, self.groups]
        return steps * self.scales[:, self.groups]

    def regroup(self, group_size: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]] | None:
        """Return scales and zeros of consecutive groups, or None where columns of one group differ.

        Shapes: (N, ceil(K / group_size)) each.
        """
        if not is_in_groups(self.groups, group_size):
            return None
        firsts = self.groups[::group_size]
        return self.scales[:, firsts], self.zeros[:, firsts]

    def rows(self, start: int, stop: int) -> GroupedRows:
        """Return some of the rows."""
        return replace(
            self, codes=self.codes[start:stop], scales=self.scales[start:stop], zeros=self.zeros[start:stop]
        )

    def pad(self, rows: int) -> GroupedRows:
        """Return the rows and so many more of zeros."""
        if not rows:
            return self
        below = ((0, rows), (0, 0))
        return replace(
            self,
            codes=np.pad(self.codes, below),
            scales=np.pad(self.scales, below),
            zeros=np.pad(self.zeros, below),
        )

    def scale_rows(self, factors: NDArray[np.float32]) -> GroupedRows:
        """Return the rows times ``factors`` (N, 1)."""
        return replace(self, scales=self.scales * factors)


def is_in_groups(groups: NDArray[np.int64], group_size: int) -> bool:
    """Tell whether every ``group_size`` consecutive columns share a group, as our own form needs it."""
    firsts = np.repeat(groups[::group_size], group_size)[: groups.size]
    return bool((groups == firsts).all())
