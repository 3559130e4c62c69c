"""The keys and values of one sequence on a device, and how sequences take turns in that memory.

A compiled block reads its history from one place, so one sequence at a time is active there. The rows of the
others lie elsewhere: on the device while it has room, else on the host.
Not here: which rows are valid (``bmodel``).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.device.base import DTYPES, Buffer, Device

__all__ = ["KvRows", "SavedRows"]


class KvRows:
    """The active memory: for every layer a buffer of keys and one of values.

    Shapes: each (1, S, KV, D). Side effect: the memory is cleared, for what is masked must be a number too.
    """

    def __init__(self, device: Device, buffers: Items[Buffer]) -> None:
        self.device = device
        self.buffers = tuple(buffers)
        _, self.context, *row = self.buffers[0].shape
        self.row_shape = tuple(row)
        zeros = np.zeros(self.buffers[0].shape, DTYPES[self.buffers[0].dtype])
        for buffer in self.buffers:
            device.upload(buffer, zeros)

    def rows(self, buffer: Buffer, start: int, count: int) -> Buffer:
        """Return a view of ``count`` rows from row ``start`` on. Shapes: (1, count, KV, D)."""
        return self.device.view(buffer, start * math.prod(self.row_shape), (1, count, *self.row_shape))

    def new_store(self) -> SavedRows:
        """Return a place for the rows of a sequence that is not active."""
        need = sum(buffer.nbytes for buffer in self.buffers)
        memory = self.device.memory()
        return _DeviceRows(self) if memory is not None and memory.free >= need else _HostRows(self)


class SavedRows(ABC):
    """The rows of one sequence while another is active."""

    def __init__(self, active: KvRows) -> None:
        self.active = active

    @abstractmethod
    def save(self, start: int, stop: int) -> None:
        """Copy rows ``start`` to ``stop`` out of the active memory."""

    @abstractmethod
    def restore(self, stop: int) -> None:
        """Copy rows 0 to ``stop`` into the active memory."""


class _DeviceRows(SavedRows):
    def __init__(self, active: KvRows) -> None:
        super().__init__(active)
        self.buffers = [active.device.allocate(buffer.dtype, buffer.shape) for buffer in active.buffers]

    def save(self, start: int, stop: int) -> None:
        rows = self.active.rows
        for saved, buffer in zip(self.buffers, self.active.buffers, strict=True):
            self.active.device.copy(rows(saved, start, stop - start), rows(buffer, start, stop - start))

    def restore(self, stop: int) -> None:
        rows = self.active.rows
        for saved, buffer in zip(self.buffers, self.active.buffers, strict=True):
            self.active.device.copy(rows(buffer, 0, stop), rows(saved, 0, stop))


class _HostRows(SavedRows):
    def __init__(self, active: KvRows) -> None:
        super().__init__(active)
        # Untouched rows take no memory.
        self.arrays: list[NDArray[Any]] = [
            np.empty(buffer.shape, DTYPES[buffer.dtype]) for buffer in active.buffers
        ]

    def save(self, start: int, stop: int) -> None:
        for array, buffer in zip(self.arrays, self.active.buffers, strict=True):
            array[:, start:stop] = self.active.device.download(self.active.rows(buffer, start, stop - start))

    def restore(self, stop: int) -> None:
        for array, buffer in zip(self.arrays, self.active.buffers, strict=True):
            self.active.device.upload(self.active.rows(buffer, 0, stop), array[:, :stop])
