"""The history memory on a device: for every layer the keys and the values of all sequences' rows.

Not here: whose the rows are (``rows``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from collections.abc import Sequence as Items

import numpy as np

from baichuan2_tpu.engine.compiled.rows import Run
from baichuan2_tpu.engine.device.base import DTYPES, Buffer, Device

__all__ = ["History"]


class History:
    """``tensors`` are keys and values of each layer in turn.

    Shapes: each (1, rows, KV, D).
    Side effect: the memory is cleared, for what is masked must be a number too.
    """

    def __init__(self, device: Device, tensors: Items[Buffer]) -> None:
        self._device = device
        self._row_shape = tensors[0].shape[2:]
        self.tensors = tuple(tensors)
        self.clear([Run(0, tensors[0].shape[1])])

    def view(self, tensor: Buffer, run: Run) -> Buffer:
        """Return the rows of a run. Shapes: (1, count, KV, D)."""
        return self._device.view(
            tensor, run.start * math.prod(self._row_shape), (1, run.count, *self._row_shape)
        )

    def clear(self, runs: Iterable[Run]) -> None:
        """Make every number of these rows zero."""
        for run in runs:
            zeros = np.zeros((1, run.count, *self._row_shape), DTYPES[self.tensors[0].dtype])
            for tensor in self.tensors:
                self._device.upload(self.view(tensor, run), zeros)

    def copy(self, tensor: Buffer, run: Run, source: Buffer, start: int) -> None:
        """Copy new keys or values, from number ``start`` on, into the rows of a run."""
        self._device.copy(self.view(tensor, run), self.view(source, Run(start, run.count)))
