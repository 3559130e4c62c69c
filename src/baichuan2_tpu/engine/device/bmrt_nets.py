"""The nets that libbmrt has loaded: what they take and give, and the runtime's own memory for it.

Not here: launching them (``bmrt``), which of them make a model (``compiled.net_plan``).
Source: ``bm_net_info_t`` of libsophon 0.5.1.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from baichuan2_tpu.engine.device.base import NetInfo, StageInfo, TensorInfo
from baichuan2_tpu.engine.device.bmrt_library import (
    DTYPE_NAMES,
    IO_ALONE,
    BmrtLibrary,
    MemoryStruct,
    NetStruct,
    ShapeStruct,
)
from baichuan2_tpu.errors import ArtifactError

__all__ = ["StageMemory", "check_shared", "read_nets"]


@dataclass(frozen=True, slots=True)
class StageMemory:
    """The runtime's own memory of a stage's inputs and outputs."""

    inputs: tuple[MemoryStruct, ...]
    outputs: tuple[MemoryStruct, ...]


def read_nets(
    library: BmrtLibrary, runtime: int
) -> tuple[Mapping[str, NetInfo], Mapping[str, tuple[StageMemory, ...]]]:
    """Return every loaded net by its name, and the memory of its stages.

    Raises: ArtifactError when the stages of a net should share their input memory and do not.
    """
    names = ctypes.POINTER(ctypes.c_char_p)()
    library.get_network_names(runtime, names)
    nets: dict[str, NetInfo] = {}
    memories: dict[str, tuple[StageMemory, ...]] = {}
    for index in range(library.get_network_number(runtime)):
        name = names[index] or b""
        net = library.get_network_info(runtime, name).contents
        info = _net_info(name.decode(), net)
        nets[info.name] = info
        memories[info.name] = tuple(_stage_memory(net, stage) for stage in range(net.stage_count))
        if info.has_own_io:
            check_shared(info.name, memories[info.name])
    library.free(names)
    return nets, memories


def _net_info(name: str, net: NetStruct) -> NetInfo:
    stages = tuple(StageInfo(_inputs(net, stage), _outputs(net, stage)) for stage in range(net.stage_count))
    return NetInfo(name, bool(net.is_dynamic), net.addr_mode == IO_ALONE, stages)


def _inputs(net: NetStruct, stage: int) -> tuple[TensorInfo, ...]:
    shapes = net.stages[stage].input_shapes
    return tuple(
        _tensor_info(net.input_names[index], net.input_dtypes[index], shapes[index])
        for index in range(net.input_count)
    )


def _outputs(net: NetStruct, stage: int) -> tuple[TensorInfo, ...]:
    shapes = net.stages[stage].output_shapes
    return tuple(
        _tensor_info(net.output_names[index], net.output_dtypes[index], shapes[index])
        for index in range(net.output_count)
    )


def _tensor_info(name: bytes, dtype: int, shape: ShapeStruct) -> TensorInfo:
    return TensorInfo(name.decode(), DTYPE_NAMES[dtype], tuple(shape.dims[: shape.num_dims]))


def _stage_memory(net: NetStruct, stage: int) -> StageMemory:
    memories: Any = net.stages[stage]
    return StageMemory(
        tuple(
            MemoryStruct.from_buffer_copy(memories.input_memories[index]) for index in range(net.input_count)
        ),
        tuple(
            MemoryStruct.from_buffer_copy(memories.output_memories[index])
            for index in range(net.output_count)
        ),
    )


def check_shared(net: str, stages: tuple[StageMemory, ...]) -> None:
    """Check that every stage of a net has its inputs at one place, for they must read one history.

    Raises: ArtifactError naming the net.
    """
    places = {tuple(memory.address for memory in stage.inputs) for stage in stages}
    if len(places) > 1:
        raise ArtifactError(f"{net}: its stages do not share their input memory; compile the bundle again")
