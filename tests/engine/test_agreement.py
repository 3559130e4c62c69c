"""The simulator computes what the cpu engine computes, on the same integers.

States are float16 between layers there and float32 here, so logits differ in the third digit. Greedy tokens
can then be equal only where the two best are further apart than that: the prompts were chosen so, by the
margins of the cpu engine alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.checkpoint.quantized_checkpoint import QuantizedCheckpoint
from baichuan2_tpu.engine.base import Chunk, Engine
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.open_bundle import open_bundle
from baichuan2_tpu.engine.cpu import CpuEngine
from baichuan2_tpu.engine.device.base import Buffer
from baichuan2_tpu.engine.device.bmrt import BmrtDevice
from baichuan2_tpu.toolchain import find_simulator
from models.random_model import float_weights
from models.reference import reference_states
from models.tiny_bundle import TINY_SETTINGS, TinyBundle, TinyBundles

LAYERS_PER_NET = TINY_SETTINGS.layers_per_net
NEW_TOKENS = 64
PROMPT_TOKENS = 11
PROMPT_SEEDS = {4: 77, 8: 67}
"""By bits, of 120 the one with the widest smallest margin: 0.076 with 4 bits, 0.023 with 8."""

STATE_TOLERANCE = 6e-3
"""Largest error of a state as a share of the largest state of its layer: two roundings to float16 a layer."""


class RecordingDevice(BmrtDevice):
    """Keeps the states that every block net has given."""

    def __init__(self, bmodel: Path, reserve_bytes: int) -> None:
        super().__init__(bmodel, simulator=find_simulator(), reserve_bytes=reserve_bytes)
        self.states: list[tuple[str, NDArray[np.float16]]] = []

    def launch(self, net: str, stage: int, inputs: Sequence[Buffer], outputs: Sequence[Buffer]) -> None:
        super().launch(net, stage, inputs, outputs)
        if net.startswith("block"):
            self.states.append((net, self.download(outputs[0])[0]))


class Pair(NamedTuple):
    simulator: BmodelEngine
    device: RecordingDevice
    cpu: CpuEngine
    weights: QuantizedCheckpoint


@pytest.fixture(scope="module", params=[4, 8])
def pair(request: pytest.FixtureRequest, tiny_bundle: TinyBundles) -> Iterator[Pair]:
    bits: Literal[4, 8] = request.param
    made: TinyBundle = tiny_bundle(bits)
    devices: list[RecordingDevice] = []

    def open_device(bmodel: Path, reserve_bytes: int) -> RecordingDevice:
        devices.append(RecordingDevice(bmodel, reserve_bytes))
        return devices[0]

    weights = QuantizedCheckpoint(made.checkpoint)
    with (
        open_bundle(made.folder, open_device) as simulator,
        CpuEngine(weights, context=simulator.max_context, is_exact=True) as cpu,
    ):
        yield Pair(simulator, devices[0], cpu, QuantizedCheckpoint(made.checkpoint))


def random_tokens(engine: Engine, count: int, seed: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, engine.config.vocabulary_size, count).tolist()


def greedy_tokens(engine: Engine, prompt: list[int]) -> tuple[list[int], NDArray[np.float32]]:
    """Return the tokens that follow a prompt and the logits they were taken from."""
    tokens: list[int] = []
    rows: list[NDArray[np.float32]] = []
    with engine.open_sequence() as sequence:
        new = prompt
        for _ in range(NEW_TOKENS):
            rows.append(engine.forward([Chunk(sequence, new)])[0][0])
            new = [int(rows[-1].argmax())]
            tokens += new
    return tokens, np.array(rows)


def test_greedy_tokens_are_those_of_the_exact_cpu_engine(pair: Pair) -> None:
    assert pair.cpu.config.quantization
    prompt = random_tokens(pair.cpu, PROMPT_TOKENS, PROMPT_SEEDS[pair.cpu.config.quantization.bits])
    expected, wanted = greedy_tokens(pair.cpu, prompt)
    found, logits = greedy_tokens(pair.simulator, prompt)
    best = np.sort(wanted, axis=1)
    margin, error = (best[:, -1] - best[:, -2]).min(), np.abs(logits - wanted).max()
    said = f"smallest margin {margin:.4f}, largest difference {error:.4f}"
    assert found == expected, said
    assert margin > 2 * error, f"{said}: choose another prompt"


@pytest.mark.parametrize("counts", [[40], [1, 1, 1], [16, 5, 1, 64, 3]])
def test_states_behind_every_net_are_those_of_the_reference(pair: Pair, counts: list[int]) -> None:
    config = pair.cpu.config
    tokens = random_tokens(pair.cpu, sum(counts), seed=1)
    _, *expected = reference_states(config, float_weights(pair.weights), tokens, np.float16)
    pair.device.states.clear()
    with pair.simulator.open_sequence() as sequence:
        done = 0
        for count in counts:
            pair.simulator.forward([Chunk(sequence, tokens[done : done + count], 0)])
            launched = 0
            while launched < count:  # in as many launches as were chosen
                tokens_now = 0
                for number in range(math.ceil(config.layers / LAYERS_PER_NET)):
                    net, states = pair.device.states.pop(0)
                    assert net == f"block_cache_{number}"
                    tokens_now = min(len(states), count - launched)
                    layer = min((number + 1) * LAYERS_PER_NET, config.layers) - 1
                    first = done + launched
                    right = expected[layer][first : first + tokens_now]
                    error = np.abs(states[:tokens_now] - right).max() / np.abs(right).max()
                    assert error < STATE_TOLERANCE, (
                        f"layer {layer}, {count} behind {done}: off by {error:.1e}"
                    )
                launched += tokens_now
            done += count
    assert not pair.device.states
