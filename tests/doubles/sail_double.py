"""A double of ``sophon.sail`` 3.10.7 on top of libbmrt: it runs real bmodels, and reports misuse.

Where SAIL would crash, or corrupt memory silently, the double raises ``Trap``, which no code of the
package catches. Calls that the package does not use are absent. Not here: tensors (``sail_double_tensor``),
video, images, several devices.
Source: src/bind.cpp and src/engine_llm.cpp of SOPHON-SAIL 3.10.7; what it did on the functional model.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from baichuan2_tpu.engine.device.bmrt_library import (
    IO_ALONE,
    SHARE_MEMORY,
    BmrtLibrary,
    MemoryStruct,
    NetStruct,
    TensorStruct,
)
from baichuan2_tpu.engine.device.simulator import prepare_simulator
from doubles.sail_double_tensor import (
    EXCEPTIONS,
    Chip,
    Dtype,
    Handle,
    LogLevel,
    Memory,
    SailEngineError,
    Tensor,
    Trap,
)

__all__ = ["install_sail", "make_sail"]

MEGABYTE = 1 << 20


@dataclass
class Side:
    """The inputs or the outputs of a graph: by index, and shapes and tensors by stage and index."""

    names: list[str]
    dtypes: list[Dtype]
    shapes: list[list[list[int]]]
    tensors: list[dict[int, Tensor]]


class Graph:
    """What ``bmrt_get_network_info`` says of a net."""

    def __init__(self, net: NetStruct, handle: Handle) -> None:
        self.is_dynamic = bool(net.is_dynamic)
        self.addr_mode = int(net.addr_mode)
        self.stage_count = int(net.stage_count)
        self.memories: list[Memory] = []
        stages = [net.stages[index] for index in range(self.stage_count)]
        self.inputs = self._side(
            handle,
            [net.input_names[index].decode() for index in range(net.input_count)],
            [Dtype(net.input_dtypes[index]) for index in range(net.input_count)],
            [(stage.input_shapes, stage.input_memories) for stage in stages],
        )
        self.outputs = self._side(
            handle,
            [net.output_names[index].decode() for index in range(net.output_count)],
            [Dtype(net.output_dtypes[index]) for index in range(net.output_count)],
            [(stage.output_shapes, stage.output_memories) for stage in stages],
        )

    def _side(
        self,
        handle: Handle,
        names: list[str],
        dtypes: list[Dtype],
        stages: list[tuple[Any, Any]],
    ) -> Side:
        side = Side(names, dtypes, [], [])
        for shapes, memories in stages:
            side.shapes.append([shape.dims[: shape.num_dims] for shape in shapes[: len(names)]])
            side.tensors.append({})
            if self.addr_mode != IO_ALONE:
                continue
            for index, dtype in enumerate(dtypes):
                memory = Memory(MemoryStruct.from_buffer_copy(memories[index]))
                self.memories.append(memory)
                side.tensors[-1][index] = Tensor.of_engine(handle, side.shapes[-1][index], dtype, memory)
        return side

    def stage_of(self, shapes: list[list[int]]) -> int | None:
        """Return the stage that libbmrt takes for inputs of these shapes."""
        for stage, compiled in enumerate(self.inputs.shapes):
            if shapes == compiled or (self.is_dynamic and are_within(shapes, compiled)):
                return stage
        return None


def are_within(shapes: list[list[int]], compiled: list[list[int]]) -> bool:
    return all(
        len(shape) == len(most) and all(a <= b for a, b in zip(shape, most, strict=True))
        for shape, most in zip(shapes, compiled, strict=True)
    )


class EngineLLM:
    chip: Chip
    handle_type: type[Handle]

    def __init__(self, bmodel_path: str, tpu_ids: list[int]) -> None:
        if not tpu_ids:
            raise SailEngineError("EngineLLM device_ids error!")
        if not Path(bmodel_path).exists():
            raise SailEngineError("EngineLLM bmodel error!")
        self._handles = [self.handle_type(tpu_id) for tpu_id in tpu_ids]
        library, handle = self.chip.library, self._handles[0]
        self._busy = threading.Lock()
        self._runtime = library.create(handle.native)
        library.set_flags(self._runtime, SHARE_MEMORY)  # libbmrt's own default
        if not library.load_bmodel(self._runtime, bmodel_path.encode()):
            raise SailEngineError("EngineLLM related error!")
        names = ctypes.POINTER(ctypes.c_char_p)()
        library.get_network_names(self._runtime, names)
        self._graphs: dict[str, Graph] = {}
        handle.hold()
        for index in range(library.get_network_number(self._runtime)):
            name = names[index] or b""
            net = library.get_network_info(self._runtime, name).contents
            self._graphs[name.decode()] = Graph(net, handle)

    def __del__(self) -> None:
        if getattr(self, "_graphs", None) is not None:
            for memory in (memory for graph in self._graphs.values() for memory in graph.memories):
                memory.is_alive = False
            self.chip.library.destroy(self._runtime)
            self._handles[0].drop()

    def get_graph_names(self) -> list[str]:
        return list(self._graphs)

    def get_addr_mode(self, graph_name: str) -> int:
        return self._graph(graph_name).addr_mode

    def get_is_dynamic(self, graph_name: str) -> bool:
        return self._graph(graph_name).is_dynamic

    def get_stage_num(self, graph_name: str) -> int:
        return self._graph(graph_name).stage_count

    def get_input_names(self, graph_name: str) -> list[str]:
        return self._graph(graph_name).inputs.names

    def get_output_names(self, graph_name: str) -> list[str]:
        return self._graph(graph_name).outputs.names

    def get_input_dtype(self, graph_name: str, index: int) -> Dtype:
        return at(self._graph(graph_name).inputs.dtypes, index)

    def get_output_dtype(self, graph_name: str, index: int) -> Dtype:
        return at(self._graph(graph_name).outputs.dtypes, index)

    def get_input_shape(self, graph_name: str, index: int, stage: int = 0) -> list[int]:
        return at(at(self._graph(graph_name).inputs.shapes, stage), index)

    def get_output_shape(self, graph_name: str, index: int, stage: int = 0) -> list[int]:
        return at(at(self._graph(graph_name).outputs.shapes, stage), index)

    def get_input_tensors(self, graph_name: str, stage: int = 0) -> dict[int, Tensor]:
        return dict(at(self._graph(graph_name).inputs.tensors, stage))

    def get_output_tensors(self, graph_name: str, stage: int = 0) -> dict[int, Tensor]:
        return dict(at(self._graph(graph_name).outputs.tensors, stage))

    def process(
        self,
        graph_name: str,
        fed: Mapping[int, Tensor],
        filled: Mapping[int, Tensor],
    ) -> None:
        if not self._busy.acquire(blocking=False):
            raise Trap("two threads are inside of one engine")
        try:
            self._process(graph_name, self._graph(graph_name), fed, filled)
        finally:
            self._busy.release()

    def _process(
        self, name: str, graph: Graph, fed: Mapping[int, Tensor], filled: Mapping[int, Tensor]
    ) -> None:
        inputs = tensors_of(graph.inputs, fed)
        outputs = tensors_of(graph.outputs, filled)
        stage = graph.stage_of([tensor.shape() for tensor in inputs])
        if stage is None:
            raise SailEngineError("Engine related error!")
        if not graph.is_dynamic:
            compiled = graph.outputs.shapes[stage]
            check_room(outputs, [math.prod(shape) for shape in compiled])
        sources, results = structs(inputs), structs(outputs)
        library = self.chip.library
        is_done = library.launch_tensor_ex(
            self._runtime, name.encode(), sources, len(inputs), results, len(outputs), True, True
        )
        if not is_done or library.thread_sync(self._handles[0].native) != 0:
            raise SailEngineError("Engine related error!")
        check_room(outputs, [math.prod(result.shape.dims[: result.shape.num_dims]) for result in results])

    def _graph(self, name: str) -> Graph:
        if name not in self._graphs:
            raise IndexError("map::at")
        return self._graphs[name]


def at(items: Sequence[Any], index: int) -> Any:
    """Index as C++ does: a negative index is far too large."""
    if not 0 <= index < len(items):
        raise IndexError("vector::_M_range_check")
    return items[index]


def tensors_of(side: Side, given: Mapping[int, Tensor]) -> list[Tensor]:
    """Return the tensors by index; extra keys are ignored."""
    tensors: list[Tensor] = []
    for index, dtype in enumerate(side.dtypes):
        tensor = given.get(index)
        if tensor is None:
            raise Trap(f"no tensor for {side.names[index]}: a segmentation fault")
        if tensor.dtype() != dtype:
            raise Trap(f"{side.names[index]} is {dtype}, {tensor.dtype()} is read as if it were")
        tensors.append(tensor)
    return tensors


def check_room(outputs: Sequence[Tensor], counts: Sequence[int]) -> None:
    for tensor, count in zip(outputs, counts, strict=True):
        if count * tensor.element_size() > tensor.device_memory.size:
            raise Trap(f"{count} elements are written to a tensor of {tensor.shape()}")


def structs(tensors: Sequence[Tensor]) -> ctypes.Array[TensorStruct]:
    made = (TensorStruct * len(tensors))()
    for struct, tensor in zip(made, tensors, strict=True):
        shape = tensor.shape()
        struct.dtype = tensor.dtype().value
        struct.shape.num_dims = len(shape)
        struct.shape.dims[: len(shape)] = shape
        struct.memory = tensor.device_memory
    return made


def install_sail(patch: pytest.MonkeyPatch, simulator: Path, **options: Any) -> ModuleType:
    """Make ``sophon.sail`` the double until ``patch`` is undone, on the libraries in ``simulator``."""
    prepare_simulator(simulator)
    sail = make_sail(BmrtLibrary(simulator), **options)
    package = ModuleType("sophon")
    vars(package)["sail"] = sail
    patch.setitem(sys.modules, "sophon", package)
    patch.setitem(sys.modules, "sophon.sail", sail)
    return sail


def make_sail(library: BmrtLibrary, *, is_soc: bool = False, total_bytes: int = 1 << 30) -> ModuleType:
    """Return a module to stand for ``sophon.sail``, with one device, which ``library`` simulates."""
    chip = Chip(library, total_bytes, is_soc)
    handle = type("Handle", (Handle,), {"chip": chip})
    engine = type("EngineLLM", (EngineLLM,), {"chip": chip, "handle_type": handle})
    sail = ModuleType("sophon.sail")
    vars(sail).update({kind.__name__: kind for kind in EXCEPTIONS})
    vars(sail).update(Dtype=Dtype, LogLevel=LogLevel, Handle=handle, Tensor=Tensor, EngineLLM=engine)
    vars(sail).update(
        get_available_tpu_num=lambda: 1,
        get_dev_stat=lambda dev_id: [chip.total_bytes // MEGABYTE, -(-chip.used_bytes // MEGABYTE), 0],
        set_loglevel=lambda level: setattr(chip, "level", level),
    )
    return sail
