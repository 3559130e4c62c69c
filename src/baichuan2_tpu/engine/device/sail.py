"""A device driven through ``EngineLLM`` of SOPHON-SAIL, version 3.9.1 or newer.

SAIL checks little, and what it misses ends in a segmentation fault or in wrong numbers: everything is checked
here before it is called. It is imported when a device is opened, never before. Not here: the engine
(``engine.compiled``), libbmrt without SAIL (``bmrt``), versions and exceptions of SAIL (``sail_library``).
Source: src/bind.cpp, src/tensor.cpp and src/engine_llm.cpp of SOPHON-SAIL 3.10.7, compared with 3.9.1.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Generator, Mapping
from collections.abc import Sequence as Items
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.bmodel.header import BmodelFile
from baichuan2_tpu.engine.device.base import (
    DTYPES,
    Buffer,
    Device,
    DeviceCounts,
    DeviceMemory,
    NetInfo,
    Shape,
    StageInfo,
    TensorInfo,
)
from baichuan2_tpu.engine.device.c_library import send_c_output_to_stderr
from baichuan2_tpu.engine.device.checks import (
    check_chip,
    check_copy,
    check_launch,
    check_memory,
    check_values,
    check_view,
)
from baichuan2_tpu.engine.device.sail_library import check_apart, check_version, import_errors, vendor_errors
from baichuan2_tpu.errors import BackendError, BackendUnavailable, DeviceError

if TYPE_CHECKING:
    from sophon.sail import Dtype, EngineLLM, Handle, Tensor

__all__ = ["SailBuffer", "SailDevice"]

_IO_ALONE = 1
_MAX_BYTES = 2**31 - 1  # SAIL counts bytes in an int
_MIB = 1 << 20
_UPLOADED = frozenset({"float32", "float16", "bfloat16", "int32", "int8", "uint8", "uint16"})
"""What ``update_data`` takes in every version; before 3.10.7 others become float32 without a word."""


class SailBuffer(Buffer):
    """Device memory behind a SAIL tensor. A view keeps what it views alive, which SAIL's own does not."""

    def __init__(
        self,
        tensor: Tensor,
        info: TensorInfo,
        *,
        source: SailBuffer | None = None,
        offset: int = 0,
        net_memory: str = "",
    ) -> None:
        self.tensor: Tensor | None = tensor
        self.dtype = info.dtype
        self.shape = info.shape
        self.source = source
        self.start_bytes = offset * DTYPES[info.dtype].itemsize + (source.start_bytes if source else 0)
        self.net_memory = source.net_memory if source else net_memory
        """What a net calls the memory where it is the net's own, else empty."""

    @property
    def root(self) -> SailBuffer:
        """The buffer at the end of a chain of views."""
        return self.source.root if self.source else self

    def overlaps(self, other: SailBuffer) -> bool:
        """Tell whether the two share bytes."""
        if self.root is not other.root and (not self.net_memory or self.net_memory != other.net_memory):
            return False
        ends_before = self.start_bytes + self.nbytes <= other.start_bytes
        starts_behind = other.start_bytes + other.nbytes <= self.start_bytes
        return not ends_before and not starts_behind


class SailDevice(Device):
    """The nets of one bmodel on device ``device``, through SAIL.

    ``reserve_bytes`` is memory that the caller will allocate beside the nets. SAIL lets other threads go on
    while a net runs, and two in one engine compute nonsense: a lock lets one in at a time. SAIL reports no
    failed copy, only failed launches and allocations.
    Side effect: SAIL's log level is set to errors, and the log goes to standard error.
    Raises: ArtifactError for a damaged file or one for another chip; BackendUnavailable when SAIL or the
    device is missing; BackendError when the device has too little free memory.
    """

    name = "sail"

    def __init__(self, bmodel: Path, *, device: int = 0, reserve_bytes: int = 0) -> None:
        file = BmodelFile.read(bmodel)
        if file.devices > 1:
            raise BackendError(
                f"{bmodel}: is for {file.devices} devices, this engine drives one; compile for one device"
            )
        send_c_output_to_stderr()  # before SAIL is loaded: its log keeps the stream that it finds then
        check_apart()
        with import_errors():
            from sophon import sail  # noqa: PLC0415 - few machines have it
        check_version(sail)
        self._sail = sail
        self._lock = threading.RLock()
        self.counts = DeviceCounts()
        self._buffers: weakref.WeakSet[SailBuffer] = weakref.WeakSet()
        self._dtypes = {name: getattr(sail.Dtype, f"BM_{name.upper()}") for name in DTYPES}
        self._device = device
        self._handle = self._open_handle()
        with self._call("name the chip"):
            # Where SAIL cannot tell, as on the functional model, libbmrt itself refuses other chips' files.
            self.chip = _chip(self._handle.get_target()) or file.chip
        check_chip(bmodel, file.chip, self.chip)
        check_memory(file.device_bytes + reserve_bytes, self.memory(), f"{bmodel} with its buffers")
        with self._call(f"load {bmodel}"):
            self._engine: EngineLLM | None = sail.EngineLLM(str(bmodel), [device])
            self.nets = _describe(self._engine, {vendor: name for name, vendor in self._dtypes.items()})

    def memory(self) -> DeviceMemory | None:
        """Return how much memory the device has, or None where SAIL cannot tell."""
        with self._call("read the device's memory"):
            total_mib, used_mib, _ = self._sail.get_dev_stat(self._device)
        if not 0 <= used_mib <= total_mib or total_mib == 0:  # as on the functional model
            return None
        return DeviceMemory(total_mib * _MIB, (total_mib - used_mib) * _MIB)

    def allocate(self, dtype: str, shape: Shape) -> SailBuffer:
        """Return new memory, all zero."""
        info = _checked_info(dtype, shape)
        self._open_engine()
        with self._call(f"allocate {info.nbytes} bytes on the device"):
            # Not on the host: without memory there, update_data and asnumpy reach the device itself.
            tensor = self._sail.Tensor(self._handle, list(shape), self._dtypes[dtype], False, True)
        return self._remember(SailBuffer(tensor, info))

    def view(self, buffer: Buffer, offset: int, shape: Shape) -> SailBuffer:
        """Return ``shape`` elements of ``buffer`` from element ``offset`` on, sharing its memory."""
        source, tensor = self._own(buffer)
        check_view(source, offset, shape)
        info = _checked_info(source.dtype, shape)
        with self._call("view a buffer"):
            viewed = self._sail.Tensor(tensor, list(shape), offset, True)
        return self._remember(SailBuffer(viewed, info, source=source, offset=offset))

    def input(self, net: str, index: int, stage: int = 0) -> SailBuffer:
        """Return the net's own memory for an input; only where ``has_own_io``."""
        info = self._check_own_io(net, stage).inputs[index]
        with self._call(f"get input {index} of {net}"):
            tensor = self._open_engine().get_input_tensors(net, stage)[index]
        # All stages of a net use one memory, so its name leaves the stage out.
        return self._remember(SailBuffer(tensor, info, net_memory=f"input {index} of {net}"))

    def output(self, net: str, index: int, stage: int = 0) -> SailBuffer:
        """Return the net's own memory for an output; only where ``has_own_io``."""
        info = self._check_own_io(net, stage).outputs[index]
        with self._call(f"get output {index} of {net}"):
            tensor = self._open_engine().get_output_tensors(net, stage)[index]
        return self._remember(SailBuffer(tensor, info, net_memory=f"output {index} of {net}"))

    def upload(self, buffer: Buffer, values: NDArray[Any]) -> None:
        """Copy host values of the buffer's dtype and shape to the device."""
        own, tensor = self._own(buffer)
        check_values(own, values)
        if own.dtype not in _UPLOADED:
            raise DeviceError(f"SAIL uploads no {own.dtype}; use one of {', '.join(sorted(_UPLOADED))}")
        if self._is_mapped(tensor):
            staged = self.allocate(own.dtype, own.shape)
            self.upload(staged, values)
            self.copy(own, staged)
            return
        # SAIL would convert float16 to float32, so 16 bits of any kind go as uint16.
        plain = values.view(np.uint16) if values.dtype.itemsize == 2 else values
        self.counts.uploaded_bytes += own.nbytes
        with self._call("upload to a buffer"):
            tensor.update_data(np.ascontiguousarray(plain))

    def download(self, buffer: Buffer) -> NDArray[Any]:
        """Return a copy of the buffer on the host; bfloat16 comes as uint16."""
        own, tensor = self._own(buffer)
        if self._is_mapped(tensor):
            staged = self.allocate(own.dtype, own.shape)
            self.copy(staged, own)
            return self.download(staged)
        self.counts.downloaded_bytes += own.nbytes
        with self._call("download a buffer"):
            values = tensor.asnumpy()
        return values.view(DTYPES[own.dtype])

    def copy(self, destination: Buffer, source: Buffer) -> None:
        """Copy between two buffers of one dtype and size that do not overlap."""
        to, to_tensor = self._own(destination)
        of, of_tensor = self._own(source)
        check_copy(to, of)
        if to.overlaps(of):
            raise DeviceError("the two buffers of a copy overlap; copy through a third one")
        self.counts.copies += 1
        with self._call("copy on the device"):
            to_tensor.sync_d2d(of_tensor, 0, 0, math.prod(of.shape))

    def launch(self, net: str, stage: int, inputs: Items[Buffer], outputs: Items[Buffer]) -> None:
        """Run one stage of a net, which SAIL waits for; it finds the stage by the shapes of the inputs.

        A net with memory of its own copies every other buffer into it first, KV history too, and out of it
        afterwards: hand over ``input(...)`` itself for whatever should stay where it is.
        """
        self._open_engine()
        check_launch(self._net(net), stage, inputs, outputs)
        fed = [self._own(buffer)[1] for buffer in inputs]
        filled = [self._own(buffer) for buffer in outputs]
        for (first, _), (second, _) in itertools.combinations(filled, 2):
            if first.overlaps(second):
                raise DeviceError(f"two outputs of {net} overlap; give each a buffer of its own")
        with self._call(f"run stage {stage} of net {net}"):
            outs = {index: tensor for index, (_, tensor) in enumerate(filled)}
            self._open_engine().process(net, dict(enumerate(fed)), outs)
        self.counts.launches += 1
        self.counts.waits += 1

    def wait(self) -> None:
        """Return at once: nothing runs on behind a launch."""

    def close(self) -> None:
        """Free the nets and all memory; closing twice is allowed."""
        with self._lock:
            self._engine = None
            for buffer in self._buffers:
                buffer.tensor = None

    @contextmanager
    def _call(self, action: str) -> Generator[None, None, None]:
        """Let one thread in, and map what SAIL raises; every call of SAIL is made inside of this."""
        with self._lock, vendor_errors(self._sail, action):
            yield

    def _open_handle(self) -> Handle:
        with self._call("set its log level"):
            self._sail.set_loglevel(self._sail.LogLevel.ERROR)
        count = self._count_devices()
        if count is not None and not 0 <= self._device < count:
            raise BackendUnavailable(
                f"there is no device {self._device}: SAIL sees {count}, counted from 0; bm-smi lists them"
            )
        try:
            with self._call(f"open device {self._device}"):
                return self._sail.Handle(self._device)
        except DeviceError as error:
            raise BackendUnavailable(
                f"{error}; install the SOPHON driver, or use a quantised checkpoint on the cpu"
            ) from error

    def _count_devices(self) -> int | None:
        try:
            with self._call("count the devices"):
                return self._sail.get_available_tpu_num()
        except DeviceError:  # a SoC may lack the control node of a card's driver; opening the device tells
            return None

    def _open_engine(self) -> EngineLLM:
        if self._engine is None:
            raise DeviceError("this device is closed; open the model again")
        return self._engine

    def _remember(self, buffer: SailBuffer) -> SailBuffer:
        self._buffers.add(buffer)
        return buffer

    def _own(self, buffer: Buffer) -> tuple[SailBuffer, Tensor]:
        self._open_engine()
        if not isinstance(buffer, SailBuffer) or buffer not in self._buffers or buffer.tensor is None:
            raise DeviceError("this buffer belongs to another device; allocate one on this device")
        return buffer, buffer.tensor

    def _is_mapped(self, tensor: Tensor) -> bool:
        """Tell whether the host's memory stands before the device's, as with a net's own memory on an SoC.

        ``update_data`` and ``asnumpy`` then reach the host's alone, so data goes through memory of our own.
        """
        with self._call("ask for the memory of a tensor"):
            return tensor.is_sys_data_valid()

    def _net(self, net: str) -> NetInfo:
        if net not in self.nets:
            raise DeviceError(f"the bmodel has no net {net}; it has {', '.join(self.nets)}")
        return self.nets[net]

    def _check_own_io(self, net: str, stage: int) -> StageInfo:
        info = self._net(net)
        if not info.has_own_io:
            raise DeviceError(f"{net} has no input and output memory of its own; allocate some")
        if not 0 <= stage < len(info.stages):
            raise DeviceError(f"{net} has no stage {stage}: it has {len(info.stages)}, counted from 0")
        return info.stages[stage]


def _chip(target: str) -> str:
    """Return the chip, or nothing where SAIL has a sentence in its place."""
    return target.lower() if target.startswith(("BM", "CV")) else ""


def _describe(engine: EngineLLM, names: Mapping[Dtype, str]) -> dict[str, NetInfo]:
    """Return what the engine says of its nets; ``names`` are ours by the vendor's dtype."""
    return {
        net: NetInfo(
            name=net,
            is_dynamic=engine.get_is_dynamic(net),
            has_own_io=engine.get_addr_mode(net) == _IO_ALONE,
            stages=tuple(_stage(engine, net, stage, names) for stage in range(engine.get_stage_num(net))),
        )
        for net in engine.get_graph_names()
    }


def _stage(engine: EngineLLM, net: str, stage: int, names: Mapping[Dtype, str]) -> StageInfo:
    inputs = tuple(
        TensorInfo(name, names[engine.get_input_dtype(net, i)], tuple(engine.get_input_shape(net, i, stage)))
        for i, name in enumerate(engine.get_input_names(net))
    )
    outputs = tuple(
        TensorInfo(
            name, names[engine.get_output_dtype(net, i)], tuple(engine.get_output_shape(net, i, stage))
        )
        for i, name in enumerate(engine.get_output_names(net))
    )
    return StageInfo(inputs, outputs)


def _checked_info(dtype: str, shape: Shape) -> TensorInfo:
    """Describe a buffer that SAIL can hold: it takes wrong shapes in silence and counts bytes in an int."""
    if dtype not in DTYPES:
        raise DeviceError(f"there is no dtype {dtype!r}; choose one of {', '.join(DTYPES)}")
    info = TensorInfo("", dtype, shape)
    if not shape or min(shape) < 1:
        raise DeviceError(f"a buffer cannot have the shape {shape}; give it dimensions of 1 or more")
    if info.nbytes > _MAX_BYTES:
        raise DeviceError(
            f"a buffer of {info.nbytes} bytes is too large: SAIL counts to {_MAX_BYTES}; use several"
        )
    return info
