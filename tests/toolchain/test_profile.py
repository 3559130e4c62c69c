"""What the compiler really writes about a net is read, and grows with the work the net does."""

import numpy as np
import pytest

from baichuan2_tpu.checkpoint.random_weights import RandomWeights
from baichuan2_tpu.compile.cycle_profile import PROFILE_NAME, read_cost
from baichuan2_tpu.compile.net_weights import block_weights
from baichuan2_tpu.compile.nets import block_net
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.compile.tpuc import Compiler
from baichuan2_tpu.manifest import NetCost, Stage
from baichuan2_tpu.shapes import shape_config
from baichuan2_tpu.toolchain import Toolchain

CONFIG = shape_config("tiny", 4)
SETTINGS = CompileSettings(
    bits=4, head="w8", context=64, rows=64, stages=(Stage(1, 64), Stage(16, 64)), layers_per_net=1
)
LINEAR_WEIGHTS = 4 * 128 * 128 + 3 * 128 * 320


@pytest.fixture(scope="module")
def costs(toolchain: Toolchain, tmp_path_factory: pytest.TempPathFactory) -> dict[int, NetCost]:
    folder = tmp_path_factory.mktemp("profile")
    arrays = block_weights(RandomWeights(CONFIG), SETTINGS, 0)
    np.savez(folder / "weights.npz", allow_pickle=False, **arrays)
    compiler = Compiler(toolchain, folder)
    costs: dict[int, NetCost] = {}
    for stage in SETTINGS.stages:
        work = folder / str(stage.tokens)
        work.mkdir()
        net = block_net(CONFIG, SETTINGS, 0, stage)
        compiler.compile(net, work)
        costs[stage.tokens] = read_cost(work / PROFILE_NAME, net=net.name, stage=stage)
    return costs


def test_a_launch_reads_its_weights_and_its_history(costs: dict[int, NetCost]) -> None:
    history = 2 * 64 * 128 * 2
    least = LINEAR_WEIGHTS // 2 + history
    assert least < costs[1].read_bytes < 3 * least


def test_operations_grow_with_the_tokens(costs: dict[int, NetCost]) -> None:
    assert costs[1].flops >= 2 * LINEAR_WEIGHTS
    assert costs[16].flops == pytest.approx(16 * costs[1].flops, rel=0.5)
    assert costs[16].time_ms > costs[1].time_ms > 0
