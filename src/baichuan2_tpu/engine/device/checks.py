"""What every device checks before it calls a vendor's library, which would abort, crash or compute nonsense.

Not here: checks of one library's own limits (``bmrt``, ``sail``), of tokens (``engine.checks``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Items
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from baichuan2_tpu.engine.device.base import DTYPES, Buffer, DeviceMemory, NetInfo, Shape, TensorInfo
from baichuan2_tpu.errors import ArtifactError, BackendError, DeviceError

__all__ = [
    "check_chip",
    "check_copy",
    "check_launch",
    "check_memory",
    "check_values",
    "check_view",
]

_FORMER_NAMES = {"bm1686": "bm1684x"}  # libbmrt takes such bmodels too


def check_chip(bmodel: Path, expected: str, actual: str) -> None:
    """Check that a bmodel was compiled for the device's chip.

    Raises: ArtifactError naming both.
    """
    if _FORMER_NAMES.get(expected, expected) != actual:
        raise ArtifactError(
            f"{bmodel}: was compiled for {expected}, the device is a {actual}; compile it for that"
        )


def check_memory(need_bytes: int, memory: DeviceMemory | None, what: str) -> None:
    """Check that ``need_bytes`` are free, where the device can tell.

    Raises: BackendError naming both numbers and how a SoC gives its TPU more.
    """
    if memory is not None and need_bytes > memory.free:
        raise BackendError(
            f"{what} needs {_megabytes(need_bytes)} of device memory, {_megabytes(memory.free)} of "
            f"{_megabytes(memory.total)} are free; end other programs that use the device, compile with a "
            "smaller --context or fewer bits, or on a SoC enlarge the npu region with memory_edit.sh"
        )


def check_view(buffer: Buffer, offset: int, shape: Shape) -> None:
    """Check that ``shape`` elements from element ``offset`` on lie within a buffer."""
    count, held = math.prod(shape), math.prod(buffer.shape)
    if offset < 0 or count < 1 or offset + count > held:
        raise DeviceError(
            f"elements {offset} to {offset + count} are not within a buffer of {held} ({list(buffer.shape)})"
        )


def check_values(buffer: Buffer, values: NDArray[Any]) -> None:
    """Check that host values have the dtype and shape of a buffer."""
    if values.dtype != DTYPES[buffer.dtype] or values.shape != buffer.shape:
        raise DeviceError(
            f"cannot upload {values.dtype} {list(values.shape)} into {buffer.dtype} {list(buffer.shape)}"
        )


def check_copy(destination: Buffer, source: Buffer) -> None:
    """Check that two buffers have one dtype and size."""
    if (destination.dtype, destination.nbytes) != (source.dtype, source.nbytes):
        raise DeviceError(
            f"cannot copy {source.dtype} {list(source.shape)} into "
            f"{destination.dtype} {list(destination.shape)}"
        )


def check_launch(net: NetInfo, stage: int, inputs: Items[Buffer], outputs: Items[Buffer]) -> None:
    """Check that buffers are what a stage of a net takes and gives."""
    if not 0 <= stage < len(net.stages):
        raise DeviceError(f"{net.name} has no stage {stage}: it has {len(net.stages)}, counted from 0")
    info = net.stages[stage]
    for kind, buffers, tensors in (("inputs", inputs, info.inputs), ("outputs", outputs, info.outputs)):
        if len(buffers) != len(tensors):
            raise DeviceError(f"{net.name} has {len(tensors)} {kind}, not {len(buffers)}")
        for buffer, tensor in zip(buffers, tensors, strict=True):
            if buffer.dtype != tensor.dtype or not _fits(net, buffer.shape, tensor):
                raise DeviceError(
                    f"{net.name}, {tensor.name}: takes {tensor.dtype} {list(tensor.shape)}, "
                    f"not {buffer.dtype} {list(buffer.shape)}"
                )


def _fits(net: NetInfo, shape: Shape, tensor: TensorInfo) -> bool:
    if not net.is_dynamic:
        return shape == tensor.shape
    return len(shape) == len(tensor.shape) and all(
        1 <= size <= most for size, most in zip(shape, tensor.shape, strict=True)
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
