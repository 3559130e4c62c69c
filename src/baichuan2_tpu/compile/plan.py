"""What a build will consist of, and what it will take: time, memory, disk, device memory.

Pure: nothing is read or written here. The costs were measured with TPU-MLIR 1.30.2 on layers, head and
embedding of the real Baichuan2-7B shape (``benchmarks/compile_cost.py``), on two cores of an AVX2 machine;
other machines differ in time, and hardly in memory and disk.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from baichuan2_tpu.checkpoint.layout import layer_linears
from baichuan2_tpu.compile.nets import (
    EMBEDDING,
    HEAD,
    Net,
    block_net,
    embedding_net,
    head_net,
    layers_of,
)
from baichuan2_tpu.compile.settings import BITS_OF_HEAD, CompileSettings, compiled_group_size
from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.manifest import Stage

__all__ = ["Plan", "Unit", "default_layers_per_net", "make_plan"]

_FLOAT_BYTES = 2
_FIRMWARE_BYTES = 5_600_000  # in every file of a net
_INSTRUCTION_BYTES = 300_000  # of a stage, per layer; the mean of 25 stages of the 7B
_SMALL_FILES_BYTES = 32 << 20  # tokenizer, manifest, logs

# Processor seconds: of a unit and of a stage, each at no weights and for every GB of them; of the end of all.
_UNIT_S, _UNIT_S_PER_GB = 0.6, 12.0
_STAGE_S, _STAGE_S_PER_GB = 0.6, 8.0
_JOIN_S_PER_GB = 3.0

_LAYERS_PER_NET = (4, 2, 1)
_DEFAULT_JOBS, _MOST_MEMORY_BYTES = 2, 8e9
"""More layers per net save launches and take memory: the default stays below this with so many jobs."""

# Memory of one job: of the compiler and of this process while it lays out the weights.
_TOOL_BYTES, _TOOL_BYTES_PER_BYTE = 100 << 20, 4.1
_LAYOUT_BYTES, _LAYOUT_BYTES_PER_BYTE = 150 << 20, 2.6


@dataclass(frozen=True, slots=True)
class Unit:
    """One net with all its stages: what is compiled, kept and verified together.

    Units: ``weight_bytes`` in the bmodel.
    """

    name: str
    kind: Literal["block", "head", "embedding"]
    number: int
    """Of a block net, counted from 0."""
    stages: tuple[Stage, ...]
    """The largest first: it decides where inputs and outputs lie."""
    weight_bytes: int
    input_bytes: int
    """Of the weights as the compiler reads them."""
    layers: int = 1
    """Of a block net; head and embedding count as one."""

    def net(self, config: ModelConfig, settings: CompileSettings, stage: Stage) -> Net:
        """Return the text of one stage."""
        if self.kind == "head":
            return head_net(config, settings, stage.tokens)
        if self.kind == "embedding":
            return embedding_net(config, settings, stage.tokens)
        return block_net(config, settings, self.number, stage)

    @property
    def instruction_bytes(self) -> int:
        """Instructions of all stages."""
        return len(self.stages) * self.layers * _INSTRUCTION_BYTES

    @property
    def skeleton_bytes(self) -> int:
        """The finished net without its weights."""
        return _FIRMWARE_BYTES + self.instruction_bytes

    @property
    def work_bytes(self) -> int:
        """Disk that compiling it takes, beside its weights: the compiler's input and its newest result."""
        stages = len(self.stages) * _FIRMWARE_BYTES + self.instruction_bytes
        return self.input_bytes + self.weight_bytes + stages

    @property
    def processor_s(self) -> float:
        """Seconds of one core."""
        gigabytes = self.weight_bytes / 1e9
        stages = len(self.stages) * (_STAGE_S + gigabytes * _STAGE_S_PER_GB)
        return _UNIT_S + gigabytes * _UNIT_S_PER_GB + stages

    @property
    def memory_bytes(self) -> int:
        """Memory of the larger of its two phases."""
        tool = _TOOL_BYTES + self.weight_bytes * _TOOL_BYTES_PER_BYTE
        return int(max(tool, _LAYOUT_BYTES + self.weight_bytes * _LAYOUT_BYTES_PER_BYTE))


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a build will make, in the order it begins.

    Units: ``embedding_bytes`` of the file beside the bmodel, 0 when the device holds it.
    """

    units: tuple[Unit, ...]
    jobs: int
    embedding_bytes: int
    history_bytes: int

    @property
    def names(self) -> tuple[str, ...]:
        """The nets in the order of the bundle, which is that of a forward pass."""
        order = {"embedding": 0, "block": 1, "head": 2}
        return tuple(unit.name for unit in sorted(self.units, key=lambda unit: order[unit.kind]))

    @property
    def stages(self) -> int:
        """Calls of the compiler."""
        return sum(len(unit.stages) for unit in self.units)

    @property
    def launches(self) -> int:
        """Launches for one token: one of each net, but for an embedding that the host gathers."""
        return len(self.units)

    @property
    def instruction_bytes(self) -> int:
        """Device memory for the instructions of all stages; on the disk equal nets share them."""
        return sum(unit.instruction_bytes for unit in self.units)

    @property
    def result_bytes(self) -> int:
        """Disk of the finished bundle."""
        weights = sum(unit.weight_bytes for unit in self.units)
        instructions = max(unit.instruction_bytes for unit in self.units)
        return weights + instructions + _FIRMWARE_BYTES + self.embedding_bytes + _SMALL_FILES_BYTES

    @property
    def peak_disk_bytes(self) -> int:
        """Disk at the worst moment: the result, what is compiled just then, and a skeleton of every unit."""
        busy = sum(sorted((unit.work_bytes for unit in self.units), reverse=True)[: self.jobs])
        moving = max(unit.weight_bytes for unit in self.units)
        # The embedding's file is written after the last net is compiled.
        skeletons = sum(unit.skeleton_bytes for unit in self.units)
        return self.result_bytes + skeletons + max(moving, busy - self.embedding_bytes)

    @property
    def memory_bytes(self) -> int:
        """Memory of the process and its compilers at the worst moment."""
        return sum(sorted((unit.memory_bytes for unit in self.units), reverse=True)[: self.jobs])

    @property
    def device_bytes(self) -> int:
        """Device memory for weights, instructions and the history; a little less than all of it."""
        weights = sum(unit.weight_bytes for unit in self.units)
        return weights + self.instruction_bytes + self.history_bytes

    @property
    def time_s(self) -> float:
        """Seconds on a machine with as many free cores as there are jobs."""
        busy = sum(unit.processor_s for unit in self.units) / self.jobs
        return busy + self.result_bytes / 1e9 * _JOIN_S_PER_GB


def make_plan(config: ModelConfig, settings: CompileSettings, jobs: int) -> Plan:
    """List the nets of a bundle; the largest come first, so that none runs alone at the end."""
    table_bytes = config.vocabulary_size * config.hidden_size * _FLOAT_BYTES
    nets = range(-(-config.layers // settings.layers_per_net))
    units = [_head(config, settings), *(_block(config, settings, number) for number in nets)]
    is_on_device = settings.embedding == "device"
    if is_on_device:
        tokens = sorted({stage.tokens for stage in settings.stages}, reverse=True)
        stages = tuple(Stage(count, 0) for count in tokens)
        units.insert(0, Unit(EMBEDDING, "embedding", 0, stages, table_bytes, 2 * table_bytes))
    history = 2 * settings.rows * config.kv_heads * config.head_size * _FLOAT_BYTES
    return Plan(
        tuple(units), min(jobs, len(units)), 0 if is_on_device else table_bytes, config.layers * history
    )


def default_layers_per_net(config: ModelConfig, settings: CompileSettings) -> int:
    """Return how many layers one net holds by default: 4, or fewer where that takes too much memory."""
    for count in _LAYERS_PER_NET[:-1]:
        unit = _block(config, replace(settings, layers_per_net=count), 0)
        if _DEFAULT_JOBS * unit.memory_bytes <= _MOST_MEMORY_BYTES:
            return count
    return _LAYERS_PER_NET[-1]


def _block(config: ModelConfig, settings: CompileSettings, number: int) -> Unit:
    layers = layers_of(config, settings, number)
    sizes = [size for layer in layers for size in layer_linears(config, layer).values()]
    # Norms, and the table of cosines and sines.
    floats = len(layers) * 2 * config.hidden_size + 2 * settings.context * config.head_size
    count = sum(rows * columns for rows, columns in sizes)
    weight, given = _bytes(count, settings.bits, floats, compiled_group_size(config))
    name, stages = f"block_cache_{number}", settings.stages[::-1]
    return Unit(name, "block", number, stages, weight, given, len(layers))


def _head(config: ModelConfig, settings: CompileSettings) -> Unit:
    count, bits = config.vocabulary_size * config.hidden_size, BITS_OF_HEAD[settings.head]
    weight, given = _bytes(count, bits, config.hidden_size, compiled_group_size(config))
    stages = tuple(Stage(rows, 0) for rows in reversed(settings.head_rows))
    return Unit(HEAD, "head", 0, stages, weight, given)


def _bytes(count: int, bits: int, floats: int, group_size: int) -> tuple[int, int]:
    """Return the bytes of weights and single floats in the bmodel, and as the compiler reads them."""
    if bits == 16:
        return (count + floats) * _FLOAT_BYTES, (count + 2 * floats) * _FLOAT_BYTES
    groups = count // group_size
    packed = count * bits // 8 + groups  # a byte for each zero
    return packed + (groups + floats) * _FLOAT_BYTES, packed + 2 * (groups + floats) * _FLOAT_BYTES
