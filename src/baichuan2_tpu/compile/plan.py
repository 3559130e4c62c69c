"""What a build will consist of, and what it will take: time, memory, disk, device memory.

Pure: nothing is read or written here. The costs were measured with TPU-MLIR 1.30.2 on layers, head and
embedding of the real Baichuan2-7B shape (``benchmarks/compile_cost.py``), on two cores of an AVX2 machine;
other machines differ in time, and hardly in memory and disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from baichuan2_tpu.checkpoint.layout import layer_linears
from baichuan2_tpu.compile.nets import EMBEDDING, HEAD, Net, block_net, embedding_net, head_net
from baichuan2_tpu.compile.settings import GROUP_SIZE, HEAD_BITS, CompileSettings
from baichuan2_tpu.config import ModelConfig

__all__ = ["Plan", "Unit", "make_plan"]

_FLOAT_BYTES = 2
_SKELETON_BYTES = 7 << 20  # a net without its weights: 5.6 MB of firmware, and instructions
_INSTRUCTION_BYTES = 160 << 10  # of one stage
_SMALL_FILES_BYTES = 32 << 20  # tokenizer, manifest, logs

# Processor seconds: of a unit and of a stage, each at no weights and for every GB of them; of the end of all.
_UNIT_S, _UNIT_S_PER_GB = 0.6, 12.0
_STAGE_S, _STAGE_S_PER_GB = 0.6, 8.0
_JOIN_S_PER_GB = 3.0

# Memory of one job: of the compiler and of this process while it lays out the weights.
_TOOL_BYTES, _TOOL_BYTES_PER_BYTE = 100 << 20, 4.1
_LAYOUT_BYTES, _LAYOUT_BYTES_PER_BYTE = 150 << 20, 2.6


@dataclass(frozen=True, slots=True)
class Unit:
    """One net with all its stages: what is compiled, kept and verified as a whole.

    Units: ``stages`` new tokens of each, the largest first; ``weight_bytes`` in the bmodel.
    """

    name: str
    kind: Literal["block", "head", "embedding"]
    layer: int
    stages: tuple[int, ...]
    weight_bytes: int
    input_bytes: int
    """Of the weights as the compiler reads them."""

    def net(self, config: ModelConfig, settings: CompileSettings, tokens: int) -> Net:
        """Return the text of one stage."""
        if self.kind == "head":
            return head_net(config, settings)
        if self.kind == "embedding":
            return embedding_net(config, settings, tokens)
        return block_net(config, settings, self.layer, tokens)

    @property
    def work_bytes(self) -> int:
        """Disk that compiling it takes, beside its weights: the compiler's input and its newest result."""
        return self.input_bytes + self.weight_bytes + len(self.stages) * _SKELETON_BYTES

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
    def result_bytes(self) -> int:
        """Disk of the finished bundle."""
        weights = sum(unit.weight_bytes for unit in self.units)
        instructions = self.stages * _INSTRUCTION_BYTES
        return weights + instructions + _SKELETON_BYTES + self.embedding_bytes + _SMALL_FILES_BYTES

    @property
    def peak_disk_bytes(self) -> int:
        """Disk at the worst moment: the result, what is compiled just then, and a skeleton of every unit."""
        busy = sum(sorted((unit.work_bytes for unit in self.units), reverse=True)[: self.jobs])
        moving = max(unit.weight_bytes for unit in self.units)
        # The embedding's file is written after the last net is compiled.
        return (
            self.result_bytes + len(self.units) * _SKELETON_BYTES + max(moving, busy - self.embedding_bytes)
        )

    @property
    def memory_bytes(self) -> int:
        """Memory of the process and its compilers at the worst moment."""
        return sum(sorted((unit.memory_bytes for unit in self.units), reverse=True)[: self.jobs])

    @property
    def device_bytes(self) -> int:
        """Device memory for weights, instructions and the history; a little less than all of it."""
        return sum(unit.weight_bytes for unit in self.units) + self.history_bytes

    @property
    def time_s(self) -> float:
        """Seconds on a machine with as many free cores as there are jobs."""
        busy = sum(unit.processor_s for unit in self.units) / self.jobs
        return busy + self.result_bytes / 1e9 * _JOIN_S_PER_GB


def make_plan(config: ModelConfig, settings: CompileSettings, jobs: int) -> Plan:
    """List the nets of a bundle; the largest come first, so that none runs alone at the end."""
    table_bytes = config.vocabulary_size * config.hidden_size * _FLOAT_BYTES
    stages = settings.stages[::-1]  # the largest says where inputs and outputs lie
    blocks = [_block(config, settings, layer, stages) for layer in range(config.layers)]
    units = [_head(config, settings), *blocks]
    is_on_device = settings.embedding == "device"
    if is_on_device:
        units.insert(0, Unit(EMBEDDING, "embedding", 0, stages, table_bytes, 2 * table_bytes))
    history = 2 * settings.context * config.kv_heads * config.head_size * _FLOAT_BYTES
    return Plan(
        tuple(units), min(jobs, len(units)), 0 if is_on_device else table_bytes, config.layers * history
    )


def _block(config: ModelConfig, settings: CompileSettings, layer: int, stages: tuple[int, ...]) -> Unit:
    sizes = layer_linears(config, layer).values()
    # Norms, and the table of cosines and sines.
    floats = 2 * config.hidden_size + 2 * settings.context * config.head_size
    weight, given = _bytes(sum(rows * columns for rows, columns in sizes), settings.bits, floats)
    return Unit(f"block_cache_{layer}", "block", layer, stages, weight, given)


def _head(config: ModelConfig, settings: CompileSettings) -> Unit:
    count = config.vocabulary_size * config.hidden_size
    weight, given = _bytes(count, HEAD_BITS[settings.head], config.hidden_size)
    return Unit(HEAD, "head", 0, (1,), weight, given)


def _bytes(count: int, bits: int, floats: int) -> tuple[int, int]:
    """Return the bytes of weights and single floats in the bmodel, and as the compiler reads them."""
    if bits == 16:
        return (count + floats) * _FLOAT_BYTES, (count + 2 * floats) * _FLOAT_BYTES
    groups = count // GROUP_SIZE
    packed = count * bits // 8 + groups  # a byte for each zero
    return packed + (groups + floats) * _FLOAT_BYTES, packed + 2 * (groups + floats) * _FLOAT_BYTES
