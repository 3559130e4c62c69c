"""The plan is read from the nets, and nets that make no model are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from baichuan2_tpu.engine.compiled.net_plan import NetPlan, plan_nets
from baichuan2_tpu.engine.device.base import NetInfo, StageInfo, TensorInfo
from baichuan2_tpu.errors import ArtifactError
from doubles.numpy_device import NumpyDevice
from models.random_model import float_weights, random_weights

MODEL = random_weights("grouped", 4)
FLOATS = float_weights(MODEL)
OWN = dict(NumpyDevice(MODEL.config, FLOATS, stages=(1, 16, 64), context=128).nets)
CONVERTER = dict(
    NumpyDevice(MODEL.config, FLOATS, stages=(1, 64), context=128, form="converter", has_embedding=True).nets
)


def sizes(plan: NetPlan, length: int, count: int) -> list[tuple[str, int, int]]:
    return [(one.stage.family, one.stage.tokens, one.count) for one in plan.cut(length, count)]


def test_dimensions_come_from_the_nets() -> None:
    plan, config = plan_nets(OWN), MODEL.config
    assert (plan.layers, plan.hidden_size) == (config.layers, config.hidden_size)
    assert (plan.kv_heads, plan.head_size, plan.context) == (config.kv_heads, config.head_size, 128)
    assert (plan.head.output, plan.head.candidates) == ("logits", config.vocabulary_size)
    assert [(stage.tokens, stage.stage) for stage in plan.stages] == [(1, 2), (16, 1), (64, 0)]


@pytest.mark.parametrize("length", [0, 5])
def test_our_own_stages_take_any_token(length: int) -> None:
    assert sizes(plan_nets(OWN), length, 90) == [("block_cache", 64, 64), ("block_cache", 64, 26)]
    assert sizes(plan_nets(OWN), length, 1) == [("block_cache", 1, 1)]


def test_a_prompt_net_takes_only_the_beginning() -> None:
    plan = plan_nets(CONVERTER)
    assert sizes(plan, 0, 64) == [("block", 64, 64)]
    assert sizes(plan, 0, 40) == [("block", 64, 40)]
    assert sizes(plan, 0, 66) == [("block", 64, 64), ("block_cache", 1, 1), ("block_cache", 1, 1)]
    assert sizes(plan, 40, 3) == [("block_cache", 1, 1)] * 3
    assert sizes(plan, 0, 1) == [("block_cache", 1, 1)]


def change_input(net: NetInfo, index: int, **changes: object) -> NetInfo:
    def changed(stage: StageInfo) -> StageInfo:
        inputs = list(stage.inputs)
        inputs[index] = replace(inputs[index], **changes)  # pyright: ignore[reportArgumentType] - real fields
        return replace(stage, inputs=tuple(inputs))

    return replace(net, stages=tuple(changed(stage) for stage in net.stages))


def head_that_gives(*outputs: TensorInfo) -> Callable[[NetInfo], NetInfo]:
    return lambda net: replace(net, stages=(replace(net.stages[0], outputs=outputs),))


@pytest.mark.parametrize(
    ("net", "change", "message"),
    [
        ("block_cache_0", None, "no block_cache_0 among the nets"),
        ("lm_head", None, "has no net lm_head"),
        (
            "block_cache_0",
            lambda net: replace(net, is_dynamic=True),
            "block_cache_0 is dynamic|has other shapes than block_cache_0",
        ),
        (
            "block_cache_1",
            lambda net: replace(net, stages=net.stages[:1]),
            "block_cache_1 has other shapes than block_cache_0",
        ),
        ("lm_head", head_that_gives(TensorInfo("x", "int8", (1, 9))), r"lm_head gives \[\('int8', 9\)\]"),
        ("lm_head", lambda net: change_input(net, 0, shape=(1, 7)), "lm_head gives"),
    ],
)
def test_nets_that_make_no_model_are_named(
    net: str, change: Callable[[NetInfo], NetInfo] | None, message: str
) -> None:
    nets = {name: one for name, one in OWN.items() if name != net or change is not None}
    if change is not None:
        nets[net] = change(nets[net])
    with pytest.raises(ArtifactError, match=message):
        plan_nets(nets)


@pytest.mark.parametrize(
    ("index", "changes"),
    [
        (1, {"dtype": "float32"}),
        (2, {"shape": (1, 1, 16, 9)}),
        (0, {"shape": (2, 16, MODEL.config.hidden_size)}),
    ],
)
def test_a_block_of_another_form_is_refused(index: int, changes: dict[str, object]) -> None:
    nets = {
        name: change_input(net, index, **changes) if name.startswith("block") else net
        for name, net in OWN.items()
    }
    with pytest.raises(
        ArtifactError, match=r"block_cache_0, stage 0: takes .* which is no block that this engine"
    ):
        plan_nets(nets)


def test_an_embedding_without_the_stage_of_a_block_is_refused() -> None:
    nets = {name: net for name, net in CONVERTER.items() if name != "embedding_cache"}
    with pytest.raises(ArtifactError, match="the embedding has no stage of 1 tokens"):
        plan_nets(nets)
