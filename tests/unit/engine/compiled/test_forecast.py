"""What a manifest alone tells of launches is what an engine then makes."""

from __future__ import annotations

import numpy as np
import pytest

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.engine.compiled.engine import BmodelEngine
from baichuan2_tpu.engine.compiled.forecast import Forecast, Pass
from baichuan2_tpu.engine.compiled.net_plan import plan_nets
from baichuan2_tpu.engine.compiled.stage_costs import StageCosts
from baichuan2_tpu.manifest import Manifest, NetCost, Stage
from doubles.numpy_device import NumpyDevice, rounded
from models.bundle_manifest import bundle_manifest
from models.random_model import float_weights, random_weights

MODEL = random_weights("grouped", 8)
FLOATS = float_weights(MODEL)
TOKENS, HISTORIES, HEAD_ROWS = (1, 16, 64), (32, 128, 256), (1, 4)


def manifest_of() -> Manifest:
    """Return the manifest of what the device in numpy has, with costs as the 7B has them."""
    stages = tuple(Stage(tokens, rows) for rows in HISTORIES for tokens in TOKENS)
    costs = [
        NetCost("block_cache_0", *stage, 2 + stage.tokens / 64 + stage.history / 512, 1, 1)
        for stage in stages
    ]
    heads = [NetCost("lm_head", rows, 0, 5.0, 1, 1) for rows in HEAD_ROWS]
    return bundle_manifest(
        model=MODEL.config,
        context=256,
        rows=256,
        stages=stages,
        head_rows=HEAD_ROWS,
        costs=(*costs, *heads),
    )


class Launched:
    """An engine on the device in numpy, and the passes that it makes."""

    def __init__(self) -> None:
        manifest = manifest_of()
        self.device = NumpyDevice(
            MODEL.config, FLOATS, context=256, stages=TOKENS, histories=HISTORIES, head_rows=HEAD_ROWS
        )
        plan = plan_nets(self.device.nets)
        embedding = rounded(FLOATS["model.embed_tokens.weight"], "float16")
        costs = StageCosts.from_manifest(manifest, plan)
        self.engine = BmodelEngine(self.device, plan, MODEL.config, costs=costs, embedding=embedding)
        self.forecast = Forecast(manifest)

    def passes(self, counts: list[tuple[int, int]]) -> list[Pass]:
        """Feed new sequences so many tokens each, and logits for so many; return the passes of that step."""
        before = len(self.device.launches)
        random = np.random.default_rng(0)
        self.engine.forward(
            [
                Chunk(self.engine.open_sequence(), random.integers(0, 320, tokens).tolist(), rows)
                for tokens, rows in counts
            ]
        )
        passes: list[Pass] = []
        for net, number in self.device.launches[before:]:
            inputs = self.device.nets[net].stages[number].inputs
            if net == "block_cache_0":
                passes.append(Pass(Stage(inputs[0].shape[1], inputs[-1].shape[1]), ()))
            elif net == "lm_head":
                passes[-1] = Pass(passes[-1].stage, (*passes[-1].head_rows, inputs[0].shape[1]))
        return passes


@pytest.mark.parametrize("rows", [0, 1, 20, 31, 32, 40, 64, 116, 120, 128, 200])
@pytest.mark.parametrize("counts", [[(1, 1)], [(1, 1)] * 5, [(40, 1), (1, 1), (1, 1)], [(17, 0)]])
def test_steps_are_those_that_an_engine_makes(rows: int, counts: list[tuple[int, int]]) -> None:
    launched = Launched()
    if rows:
        launched.passes([(rows, 0)])
    tokens, outputs = (sum(numbers) for numbers in zip(*counts, strict=True))
    expected = launched.forecast.step(tokens, outputs, rows)
    assert launched.passes(counts) == expected


@pytest.mark.parametrize("length", [1, 14, 33, 64, 65, 150, 256])
def test_a_prompt_is_fed_in_the_pieces_of_a_generation(length: int) -> None:
    launched = Launched()
    passes = launched.forecast.prompt(length)
    assert sum(launch.stage.tokens for launch in passes) >= length
    assert passes[-1].head_rows == (1,)
    assert [launch.head_rows for launch in passes[:-1]] == [()] * (len(passes) - 1)
    if length <= launched.engine.prompt_piece:
        assert passes == launched.passes([(length, 1)])
