"""Compiled nets compute what the model's definition says, on exactly the same weights."""

from __future__ import annotations

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
from baichuan2_tpu.compile.settings import SAMPLE_CANDIDATES, Bits, CompileSettings
from baichuan2_tpu.compile.tpuc import Compiler
from baichuan2_tpu.config import ModelConfig, QuantizationConfig
from baichuan2_tpu.engine.device.base import DTYPES, Buffer
from baichuan2_tpu.engine.device.bmrt import BmrtDevice
from baichuan2_tpu.manifest import Float, HeadKind
from baichuan2_tpu.toolchain import Toolchain, find_simulator
from models.random_model import float_weights
from models.reference import reference_layer, rms_norm
from models.tiny_checkpoint import alibi_config, rope_config

CONTEXT = 64
SETTINGS = CompileSettings(bits=4, head="w8", context=CONTEXT, prefill=(5, 16))
CHUNKS = (11, 1, 1, 5, 3, 1, 16, 1)
"""New tokens of each launch: full and padded stages, in an order that mixes them."""
MASKED = -1e4
MOST_ERRORS: dict[Float, float] = {"float16": 2e-6, "bfloat16": 1e-4}
"""Of a cosine; measured: 3e-7, and 2.4e-5 where everything has three bits less."""


def make_weights(config: ModelConfig, head_bits: Literal[4, 8] = 8, bits: Literal[4, 8] = 8) -> RandomWeights:
    quantization = QuantizationConfig(bits, head_bits=head_bits)
    return NormedWeights(replace(config, layers=1, quantization=quantization), seed=3)


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
        for net in sorted(nets, key=lambda net: -net.tokens):
            work = self.folder / str(net.tokens)
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
def test_stages_in_any_order_compute_one_sequence(bench: Bench, shape: str, bits: Bits, dtype: Float) -> None:
    weights = make_weights(SHAPES[shape], bits=4 if bits == 4 else 8)
    settings = replace(SETTINGS, bits=bits, dtype=dtype)
    settings.check(weights.config)
    states = rounded(random_states(weights.config, sum(CHUNKS)), dtype)
    nets = [block_net(weights.config, settings, 0, tokens) for tokens in settings.stages]
    with bench.open(nets, block_weights(weights, settings, 0)) as device:
        clear_history(device)
        found = run_block(device, settings, states, CHUNKS)
    wanted = reference_layer(weights.config, float_weights(weights), 0, states)
    error = cosine_error(found - states, wanted - states)
    assert error < MOST_ERRORS[dtype], f"1 - cosine is {error:.1e}"


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
    weights = make_weights(SHAPES[shape])
    settings = replace(SETTINGS, bits=8, context=context, prefill=(stage,))
    chunks = (stage - 3, 1, 2, 1)
    states = rounded(random_states(weights.config, sum(chunks)), "float16")
    nets = [block_net(weights.config, settings, 0, tokens) for tokens in settings.stages]
    with bench.open(nets, block_weights(weights, settings, 0)) as device:
        clear_history(device)
        found = run_block(device, settings, states, chunks)
    wanted = reference_layer(weights.config, float_weights(weights), 0, states)
    error = cosine_error(found - states, wanted - states)
    assert error < MOST_ERRORS["float16"], f"1 - cosine is {error:.1e}"


def test_alibi_tells_near_keys_apart_after_a_long_history(bench: Bench) -> None:
    # Float16 cannot tell position 3001 from 3002; one step is a factor of 2.3 for the steepest head.
    config = replace(SHAPES["alibi"], max_context=4096)
    weights, context = make_weights(config, bits=4), 3072
    settings = replace(SETTINGS, context=context, prefill=())
    states = rounded(random_states(config, 3006), "float16")
    net = block_net(config, settings, 0, 1)
    floats = float_weights(weights)
    with bench.open([net], block_weights(weights, settings, 0)) as device:
        clear_history(device)
        fill_history(device, config, floats, states[:3000])
        found = run_block(device, settings, states[3000:], (1,) * 6, held=3000)
    wanted = reference_layer(config, floats, 0, states)[3000:]
    error = cosine_error(found - states[3000:], wanted - states[3000:])
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
    states = rounded(random_states(weights.config, 1), dtype)
    with bench.open([head_net(weights.config, settings)], head_weights(weights, settings)) as device:
        (logits,) = run_head(device, states)
    error = cosine_error(logits, reference_head(weights, states))
    assert error < MOST_ERRORS[dtype], f"1 - cosine is {error:.1e}"


def test_a_token_head_gives_the_most_likely_token(bench: Bench) -> None:
    weights = make_weights(SHAPES["grouped"])
    settings = replace(SETTINGS, bits=8, head_output="token")
    rows = rounded(random_states(weights.config, 8), "float16")
    with bench.open([head_net(weights.config, settings)], head_weights(weights, settings)) as device:
        found = [run_head(device, row[None])[0].item() for row in rows]
    assert found == [int(reference_head(weights, row[None]).argmax()) for row in rows]


def test_a_sample_head_gives_the_best_logits_in_order(bench: Bench) -> None:
    weights = make_weights(SHAPES["grouped"])
    settings = replace(SETTINGS, bits=8, head_output="sample")
    states = rounded(random_states(weights.config, 1), "float16")
    with bench.open([head_net(weights.config, settings)], head_weights(weights, settings)) as device:
        logits, ids = (one[0] for one in run_head(device, states))
    wanted = reference_head(weights, states)[0]
    # Neighbours nearer than a step of float16 may change places.
    np.testing.assert_allclose(logits, np.sort(wanted)[::-1][:SAMPLE_CANDIDATES], atol=2e-3)
    np.testing.assert_allclose(logits, wanted[ids], atol=2e-3)
    assert len(set(ids.tolist())) == SAMPLE_CANDIDATES
    assert (np.diff(logits) <= 0).all()


def test_the_embedding_gives_the_rows_of_the_table(bench: Bench) -> None:
    weights = make_weights(SHAPES["grouped"])
    nets = [embedding_net(weights.config, SETTINGS, tokens) for tokens in SETTINGS.stages]
    tokens = np.arange(16, dtype=np.int32)[None] * 19
    with bench.open(nets, embedding_weights(weights, SETTINGS)) as device:
        (net,) = device.nets
        for stage, info in enumerate(device.nets[net].stages):
            count = info.inputs[0].shape[1]
            (found,) = launch(device, net, stage, [tokens[:, :count]])
            assert np.array_equal(found[0], weights.array("model.embed_tokens")[tokens[0, :count]])


def run_block(
    device: BmrtDevice,
    settings: CompileSettings,
    states: NDArray[np.float64],
    chunks: Sequence[int],
    held: int = 0,
) -> NDArray[np.float64]:
    """Send a sequence through a block in chunks, each by the shortest stage that holds it."""
    (net,) = device.nets
    dtype, found, start = settings.dtype, [], held
    for count in chunks:
        tokens = next(one for one in settings.stages if one >= count)
        stage = [info.inputs[1].shape[1] for info in device.nets[net].stages].index(tokens)
        first = start - held
        values = [np.zeros((1, tokens, states.shape[1])), np.zeros((1, tokens), np.int32)]
        values[0][0, :count] = states[first : first + count]
        values[1][0, :count] = np.arange(start, start + count)
        values.append(make_mask(settings.context, start, tokens))
        outputs = launch(device, net, stage, [encoded(one, dtype) for one in values])
        found.append(decoded(outputs[0][0, :count], dtype))
        for index in (1, 2):
            write_rows(device, index + 2, start, outputs[index][0, :count])
        start += count
    return np.concatenate(found)


def make_mask(context: int, held: int, tokens: int) -> NDArray[np.float64]:
    mask = np.full((1, 1, tokens, context + tokens), MASKED)
    mask[..., :held] = 0
    mask[0, 0, :, context:][np.tri(tokens, dtype=bool)] = 0
    return mask


def clear_history(device: BmrtDevice) -> None:
    """Write numbers everywhere: what is masked still takes part, with weight zero."""
    (net,) = device.nets
    for index in (3, 4):
        history = device.input(net, index)
        device.upload(history, np.zeros(history.shape, np.uint16).view(DTYPES[history.dtype]))


def fill_history(
    device: BmrtDevice, config: ModelConfig, floats: Arrays, states: NDArray[np.float64]
) -> None:
    """Write the keys and values of earlier tokens, in the way of the definition without positions."""
    prefix = "model.layers.0"
    normed = rms_norm(states, floats[f"{prefix}.input_layernorm.weight"].astype(np.float64), config.norm_eps)
    for index, letter in ((3, "k"), (4, "v")):
        rows = normed @ floats[f"{prefix}.self_attn.{letter}_proj.weight"].astype(np.float64).T
        write_rows(device, index, 0, rows.reshape(-1, config.kv_heads, config.head_size).astype(np.float16))


def write_rows(device: BmrtDevice, index: int, start: int, rows: NDArray[Any]) -> None:
    (net,) = device.nets
    history = device.input(net, index)
    offset = start * rows[0].size
    device.upload(device.view(history, offset, (1, *rows.shape)), rows[None])


def run_head(device: BmrtDevice, states: NDArray[np.float64]) -> list[NDArray[Any]]:
    (net,) = device.nets
    info = device.nets[net].stages[0]
    dtype = info.inputs[0].dtype
    outputs = launch(device, net, 0, [encoded(states, dtype)])
    return [decoded(one, info.outputs[i].dtype) for i, one in enumerate(outputs)]


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


def random_states(config: ModelConfig, tokens: int) -> NDArray[np.float64]:
    """Make states so small that a layer's own part is not lost in what it is added to."""
    return np.random.default_rng(7).standard_normal((tokens, config.hidden_size)) * 0.02


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
