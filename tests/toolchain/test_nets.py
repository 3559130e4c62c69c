"""Compiled nets compute what the model's definition says, on exactly the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.compile.net_weights import Arrays, block_weights, embedding_weights, head_weights
from baichuan2_tpu.compile.nets import Net, block_net, embedding_net, head_net
from baichuan2_tpu.compile.settings import (
    SAMPLE_CANDIDATES,
    Bits,
    CompileSettings,
    compiled_group_size,
)
from baichuan2_tpu.compile.tpuc import Compiler
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.engine.device.base import DTYPES, Buffer, StageInfo
from baichuan2_tpu.engine.device.bmrt import BmrtDevice
from baichuan2_tpu.manifest import Float, HeadKind, Stage
from baichuan2_tpu.toolchain import Toolchain, find_simulator
from models.random_model import float_weights
from models.reference import reference_layer, rms_norm
from models.tiny_checkpoint import alibi_config, rope_config

CONTEXT, ROWS = 32, 64
STAGES = (
    Stage(1, 16),
    Stage(5, 16),
    Stage(1, 32),
    Stage(16, 32),
    Stage(1, 64),
    Stage(5, 64),
    Stage(16, 64),
)
SETTINGS = CompileSettings(
    bits=4, head="w8", context=CONTEXT, rows=ROWS, stages=STAGES, head_rows=(1, 4), layers_per_net=2
)
Launch = Sequence[tuple[int, int]]
"""What one launch takes: new tokens of a sequence, by the number of the sequence."""
LAUNCHES: Sequence[Launch] = (
    [(0, 11)],
    [(1, 3), (0, 1)],
    [(0, 1)],
    [(1, 5), (0, 2), (1, 2)],
    [(1, 1), (0, 3)],
    [(0, 1)],
    [(1, 16)],
    [(0, 1)],
)
"""Full and padded stages, in an order that mixes them, of two sequences that share all rows."""
MASKED = -1e4
MOST_ERRORS: dict[Float, float] = {"float16": 2e-6, "bfloat16": 1e-4}
"""Of a cosine; measured: 3e-7, and 2.4e-5 where everything has three bits less."""


def make_weights(
    config: ModelConfig,
    head_bits: Literal[4, 8] = 8,
    bits: Literal[4, 8] = 8,
    *,
    layers: int = 2,
    group_size: int = 64,
) -> RandomWeights:
    quantization = QuantizationConfig(bits, group_size=group_size, head_bits=head_bits)
    return NormedWeights(replace(config, layers=layers, quantization=quantization), seed=3)


class NormedWeights(RandomWeights):
    """Random weights whose norms are not all ones."""

    def array(self, name: str) -> NDArray[Any]:
        values = super().array(name)
        if values.ndim > 1:
            return values
        return np.random.default_rng(len(name)).uniform(0.5, 1.5, values.shape).astype(np.float32)


@dataclass(frozen=True)
class Bench:
    """Compiles nets of one kind into one bmodel, and opens it on the simulator."""

    toolchain: Toolchain
    folder: Path

    def open(self, nets: Sequence[Net], arrays: Arrays) -> BmrtDevice:
        np.savez(self.folder / "weights.npz", allow_pickle=False, **arrays)
        compiler = Compiler(self.toolchain, self.folder)
        parts: list[Path] = []
        for net in sorted(nets, key=lambda net: net.stage[::-1], reverse=True):
            work = self.folder / f"{net.stage.tokens}-{net.stage.history}"
            work.mkdir()
            addresses = ("use" if parts else "save") if net.has_own_io else None
            parts.append(compiler.compile(net, work, addresses))
        bmodel = self.folder / "all.bmodel"
        compiler.combine(parts, bmodel)
        return BmrtDevice(bmodel, simulator=find_simulator(self.toolchain.root))


@pytest.fixture
def bench(toolchain: Toolchain, tmp_path: Path) -> Bench:
    return Bench(toolchain, tmp_path)


SHAPES: dict[str, ModelConfig] = {
    "grouped": rope_config(hidden_size=192, heads=6, kv_heads=2, head_size=64, intermediate_size=256),
    "wide heads": rope_config(hidden_size=256, heads=2, kv_heads=2, head_size=128, intermediate_size=320),
    "alibi": alibi_config(hidden_size=192, heads=6, kv_heads=6, head_size=32, intermediate_size=256),
    "alibi, wide heads": alibi_config(
        hidden_size=384, heads=3, kv_heads=3, head_size=128, intermediate_size=256
    ),
}
FORMS: list[tuple[str, Bits, Float]] = [
    ("grouped", 4, "float16"),
    ("grouped", 16, "float16"),
    ("grouped", 8, "bfloat16"),
    ("wide heads", 8, "float16"),
    ("alibi", 4, "float16"),
    ("alibi, wide heads", 8, "float16"),
]


@pytest.mark.parametrize(("shape", "bits", "dtype"), FORMS)
def test_stages_in_any_order_compute_sequences_that_share_all_rows(
    bench: Bench, shape: str, bits: Bits, dtype: Float
) -> None:
    weights = make_weights(SHAPES[shape], bits=4 if bits == 4 else 8)
    check_block(bench, weights, replace(SETTINGS, bits=bits, dtype=dtype), LAUNCHES)


@pytest.mark.parametrize("group_size", [128, 256])
@pytest.mark.parametrize("bits", [4, 8])
def test_larger_groups_are_compiled_as_they_are(bench: Bench, bits: Literal[4, 8], group_size: int) -> None:
    shape = rope_config(hidden_size=512, heads=4, kv_heads=4, head_size=128, intermediate_size=768)
    weights = make_weights(shape, bits=bits, group_size=group_size)
    assert compiled_group_size(weights.config) == group_size
    check_block(bench, weights, replace(SETTINGS, bits=bits), LAUNCHES)


@pytest.mark.parametrize("layers_per_net", [1, 4])
def test_a_net_can_hold_one_layer_or_the_last_few(bench: Bench, layers_per_net: int) -> None:
    weights = make_weights(SHAPES["wide heads"], layers=3 if layers_per_net == 4 else 1)
    check_block(bench, weights, replace(SETTINGS, bits=8, layers_per_net=layers_per_net), LAUNCHES)


def test_positions_go_to_the_context_in_a_stage_with_a_short_history(bench: Bench) -> None:
    # The table of RoPE had as many positions as the stage had rows of history.
    weights = make_weights(SHAPES["wide heads"], layers=1)
    settings = replace(SETTINGS, bits=8, stages=(Stage(16, 16), Stage(1, 64), Stage(16, 64)))
    check_block(bench, weights, settings, [[(0, 16)], [(0, 12)]])


# The compiler's ONNX route computes wrong attention, without a word, where the context is the head size.
MEETINGS: list[tuple[str, int, int]] = [
    ("wide heads", 128, 64),  # the context is the head size
    ("wide heads", 256, 128),  # a stage is
    ("wide heads", 96, 32),  # both together are
    ("grouped", 128, 64),
    ("alibi, wide heads", 128, 64),
    ("alibi, wide heads", 256, 128),
    ("alibi", 64, 32),
]


@pytest.mark.parametrize(("shape", "context", "stage"), MEETINGS)
def test_lengths_that_meet_the_head_size_change_nothing(
    bench: Bench, shape: str, context: int, stage: int
) -> None:
    weights = make_weights(SHAPES[shape], layers=1)
    stages = (Stage(1, context), Stage(stage, context))
    settings = replace(SETTINGS, bits=8, context=context, rows=context, stages=stages)
    check_block(bench, weights, settings, [[(0, stage - 3)], [(0, 1)], [(0, 2)], [(0, 1)]])


def test_alibi_tells_near_keys_apart_after_a_long_history(bench: Bench) -> None:
    # Float16 cannot tell position 3001 from 3002; one step is a factor of 2.3 for the steepest head.
    weights = make_weights(replace(SHAPES["alibi"], max_context=4096), bits=4, layers=1)
    config, context, held = weights.config, 3072, 3000
    settings = replace(SETTINGS, context=context, rows=context, stages=(Stage(1, context),))
    states = rounded(random_states(config, held + 6), "float16")
    net = block_net(config, settings, 0, Stage(1, context))
    floats = float_weights(weights)
    with bench.open([net], block_weights(weights, settings, 0)) as device:
        clear_history(device)
        fill_history(device, config, floats, states[:held])
        history = History(np.zeros(context, int), np.arange(context, dtype=np.int32), held)
        rows = [[(0, states[row : row + 1])] for row in range(held, held + 6)]
        outputs = [run_launch(device, settings, history, row) for row in rows]
    expected = reference_layer(config, floats, 0, states)[held:]
    error = cosine_error(np.concatenate(outputs) - states[held:], expected - states[held:])
    assert error < MOST_ERRORS["float16"], f"1 - cosine is {error:.1e}"


HEADS: list[tuple[HeadKind, Float]] = [
    ("w4", "float16"),
    ("w8", "float16"),
    ("f16", "float16"),
    ("f16", "bfloat16"),
]


@pytest.mark.parametrize(("head", "dtype"), HEADS)
def test_the_head_gives_the_logits_of_the_normed_states(bench: Bench, head: HeadKind, dtype: Float) -> None:
    weights = make_weights(SHAPES["grouped"], 4 if head == "w4" else 8)
    settings = replace(SETTINGS, bits=8, head=head, dtype=dtype)
    settings.check(weights.config)
    states = rounded(random_states(weights.config, 4), dtype)
    with open_head(bench, weights, settings) as device:
        for rows in (1, 4):
            (logits,) = run_head(device, states[:rows])
            error = cosine_error(logits, reference_head(weights, states[:rows]))
            assert error < MOST_ERRORS[dtype], f"{rows} rows: 1 - cosine is {error:.1e}"


def test_a_token_head_gives_the_most_likely_token_of_each_row(bench: Bench) -> None:
    weights = make_weights(SHAPES["grouped"])
    settings = replace(SETTINGS, bits=8, head_output="token")
    rows = rounded(random_states(weights.config, 4), "float16")
    expected = reference_head(weights, rows).argmax(axis=1).tolist()
    with open_head(bench, weights, settings) as device:
        tokens = [run_head(device, row[None])[0].item() for row in rows]
        together = run_head(device, rows)[0].ravel().tolist()
    assert tokens == together == expected


@pytest.mark.parametrize("rows", [1, 4])
def test_a_sample_head_gives_the_best_logits_of_each_row_in_order(bench: Bench, rows: int) -> None:
    weights = make_weights(SHAPES["grouped"])
    settings = replace(SETTINGS, bits=8, head_output="sample")
    states = rounded(random_states(weights.config, rows), "float16")
    with open_head(bench, weights, settings) as device:
        all_logits, all_ids = run_head(device, states)
    for logits, ids, expected in zip(all_logits, all_ids, reference_head(weights, states), strict=True):
        # Neighbours nearer than a step of float16 may change places.
        np.testing.assert_allclose(logits, np.sort(expected)[::-1][:SAMPLE_CANDIDATES], atol=2e-3)
        np.testing.assert_allclose(logits, expected[ids], atol=2e-3)
        assert len(set(ids.tolist())) == SAMPLE_CANDIDATES
        assert (np.diff(logits) <= 0).all()


def test_the_embedding_gives_the_rows_of_the_table(bench: Bench) -> None:
    weights = make_weights(SHAPES["grouped"])
    nets = [embedding_net(weights.config, SETTINGS, tokens) for tokens in (1, 5, 16)]
    tokens = np.arange(16, dtype=np.int32)[None] * 19
    with bench.open(nets, embedding_weights(weights, SETTINGS)) as device:
        (net,) = device.nets
        for stage, info in enumerate(device.nets[net].stages):
            count = info.inputs[0].shape[1]
            (found,) = launch(device, net, stage, [tokens[:, :count]])
            assert np.array_equal(found[0], weights.array("model.embed_tokens")[tokens[0, :count]])


@dataclass
class History:
    """Whose rows the history holds, and at which positions; ``used`` counts the rows in use."""

    owners: NDArray[np.int_]
    positions: NDArray[np.int32]
    used: int = 0

    @classmethod
    def empty(cls, rows: int) -> History:
        return cls(np.full(rows, -1), np.zeros(rows, np.int32))

    def append(self, sequence: int) -> None:
        held = self.owners[: self.used]
        self.positions[self.used] = np.count_nonzero(held == sequence)
        self.owners[self.used] = sequence
        self.used += 1


def check_block(
    bench: Bench,
    weights: RandomWeights,
    settings: CompileSettings,
    launches: Sequence[Launch],
) -> None:
    """Send sequences through the block net, and compare each with the definition of its layers."""
    config = weights.config
    settings.check(replace(config, max_context=4096))
    counts: dict[int, int] = {}
    for launch in launches:
        for sequence, count in launch:
            counts[sequence] = counts.get(sequence, 0) + count
    states = {
        number: rounded(random_states(config, count, seed=number), settings.dtype)
        for number, count in counts.items()
    }
    outputs: dict[int, list[NDArray[np.float64]]] = {number: [] for number in counts}
    nets = [block_net(config, settings, 0, stage) for stage in settings.stages]
    with bench.open(nets, block_weights(weights, settings, 0)) as device:
        clear_history(device)
        history, done = History.empty(settings.rows), dict.fromkeys(counts, 0)
        for launch in launches:
            parts: list[tuple[int, NDArray[np.float64]]] = []
            for number, count in launch:
                parts.append((number, states[number][done[number] : done[number] + count]))
                done[number] += count
            rows = run_launch(device, settings, history, parts)
            for number, part in parts:
                outputs[number].append(rows[: len(part)])
                rows = rows[len(part) :]
    for number, given in states.items():
        expected = given
        for layer in range(config.layers):
            expected = reference_layer(config, float_weights(weights), layer, expected)
        error = cosine_error(np.concatenate(outputs[number]) - given, expected - given)
        assert error < MOST_ERRORS[settings.dtype], f"sequence {number}: 1 - cosine is {error:.1e}"


def run_launch(
    device: BmrtDevice,
    settings: CompileSettings,
    history: History,
    parts: Sequence[tuple[int, NDArray[np.float64]]],
) -> NDArray[np.float64]:
    """Run new tokens through the stage of least history that holds them, and append their rows."""
    (net,) = device.nets
    count, used = sum(len(part) for _, part in parts), history.used
    stage = next(one for one in settings.stages if one.tokens >= count and one.history >= used)
    shapes = [(info.inputs[1].shape[1], mask_columns(info)) for info in device.nets[net].stages]
    index = shapes.index((stage.tokens, stage.history + stage.tokens))
    sequences = np.array([number for number, part in parts for _ in range(len(part))])
    for number in sequences:
        history.append(int(number))
    values: list[NDArray[Any]] = [np.zeros((1, stage.tokens, parts[0][1].shape[1]))]
    values[0][0, :count] = np.concatenate([part for _, part in parts])
    positions = np.zeros((1, stage.tokens), np.int32)
    positions[0, :count] = history.positions[used : used + count]
    values += [positions, make_mask(stage, history.owners[:used], sequences)]
    first_history = len(device.nets[net].stages[0].inputs) - 2 * layers_in(device)
    if first_history == 4:
        values.append(history.positions[None, : stage.history])
    outputs = launch(device, net, index, [encoded(value, settings.dtype) for value in values])
    for number, rows in enumerate(outputs[1:]):
        write_rows(device, first_history + number, used, rows[0, :count])
    return decoded(outputs[0][0, :count], settings.dtype)


def layers_in(device: BmrtDevice) -> int:
    (net,) = device.nets
    return (len(device.nets[net].stages[0].outputs) - 1) // 2


def mask_columns(info: StageInfo) -> int:
    return info.inputs[2].shape[3]


def make_mask(stage: Stage, owners: NDArray[np.int_], sequences: NDArray[np.int_]) -> NDArray[np.float64]:
    """Show every new token the rows of its own sequence, and of it the new tokens up to itself."""
    mask = np.full((1, 1, stage.tokens, stage.history + stage.tokens), MASKED)
    new = mask[0, 0, :, stage.history :]
    new[np.eye(stage.tokens, dtype=bool)] = 0  # padding sees itself
    count = len(sequences)
    mask[0, 0, :count, : len(owners)][owners == sequences[:, None]] = 0
    new[:count, :count][np.tri(count, dtype=bool) & (sequences == sequences[:, None])] = 0
    return mask


def clear_history(device: BmrtDevice) -> None:
    """Write numbers everywhere: what is masked still takes part, with weight zero."""
    (net,) = device.nets
    inputs = len(device.nets[net].stages[0].inputs)
    for index in range(inputs - 2 * layers_in(device), inputs):
        history = device.input(net, index)
        device.upload(history, np.zeros(history.shape, np.uint16).view(DTYPES[history.dtype]))


def fill_history(
    device: BmrtDevice, config: ModelConfig, floats: Arrays, states: NDArray[np.float64]
) -> None:
    """Write the keys and values of earlier tokens, in the way of the definition without positions."""
    prefix = "model.layers.0"
    normed = rms_norm(states, floats[f"{prefix}.input_layernorm.weight"].astype(np.float64), config.norm_eps)
    for index, letter in ((4, "k"), (5, "v")):
        rows = normed @ floats[f"{prefix}.self_attn.{letter}_proj.weight"].astype(np.float64).T
        write_rows(device, index, 0, rows.reshape(-1, config.kv_heads, config.head_size).astype(np.float16))


def write_rows(device: BmrtDevice, index: int, start: int, rows: NDArray[Any]) -> None:
    (net,) = device.nets
    history = device.input(net, index)
    offset = start * rows[0].size
    device.upload(device.view(history, offset, (1, *rows.shape)), rows[None])


def open_head(bench: Bench, weights: RandomWeights, settings: CompileSettings) -> BmrtDevice:
    nets = [head_net(weights.config, settings, rows) for rows in settings.head_rows]
    return bench.open(nets, head_weights(weights, settings))


def run_head(device: BmrtDevice, states: NDArray[np.float64]) -> list[NDArray[Any]]:
    """Run the stage that has as many rows."""
    (net,) = device.nets
    stages = device.nets[net].stages
    index = [math.prod(info.inputs[0].shape) for info in stages].index(states.size)
    values = encoded(states, stages[index].inputs[0].dtype).reshape(stages[index].inputs[0].shape)
    outputs = launch(device, net, index, [values])
    return [decoded(output, stages[index].outputs[i].dtype) for i, output in enumerate(outputs)]


def launch(device: BmrtDevice, net: str, stage: int, values: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Run one stage; of a block, the history that it holds itself is used."""
    info = device.nets[net]
    own: Callable[[str, int, int], Buffer] | None = device.input if info.has_own_io else None
    wanted, given = info.stages[stage].outputs, info.stages[stage].inputs
    inputs = [
        device.allocate(one.dtype, one.shape) if own is None else own(net, index, stage)
        for index, one in enumerate(given)
    ]
    for buffer, one in zip(inputs, values, strict=False):
        device.upload(buffer, one)
    outputs = [device.allocate(one.dtype, one.shape) for one in wanted]
    device.launch(net, stage, inputs, outputs)
    return [device.download(one) for one in outputs]


def reference_head(weights: RandomWeights, states: NDArray[np.float64]) -> NDArray[np.float64]:
    floats = {name: values.astype(np.float64) for name, values in float_weights(weights).items()}
    normed = rms_norm(states, floats["model.norm.weight"], weights.config.norm_eps)
    return normed @ floats["lm_head.weight"].T


def random_states(config: ModelConfig, tokens: int, seed: int = 0) -> NDArray[np.float64]:
    """Make states so small that a layer's own part is not lost in what it is added to."""
    return np.random.default_rng(7 + seed).standard_normal((tokens, config.hidden_size)) * 0.02


def rounded(values: NDArray[np.float64], dtype: str) -> NDArray[np.float64]:
    return decoded(encoded(values, dtype), dtype)


def encoded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Round floats as a device holds them; integers stay."""
    if values.dtype.kind == "i":
        return values
    if dtype == "float16":
        return values.astype(np.float16)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def decoded(values: NDArray[Any], dtype: str) -> NDArray[Any]:
    if values.dtype.kind == "i":
        return values
    if dtype == "bfloat16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)


def cosine_error(found: NDArray[np.float64], wanted: NDArray[np.float64]) -> float:
    return float(1 - np.vdot(found, wanted) / np.linalg.norm(found) / np.linalg.norm(wanted))
