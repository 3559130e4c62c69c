"""The plan is read from the nets, and nets that make no model are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from baichuan2_tpu.engine.compiled.net_plan import plan_nets
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


def test_dimensions_come_from_the_nets() -> None:
    plan, config = plan_nets(OWN), MODEL.config
    assert (plan.layers, plan.hidden_size) == (config.layers, config.hidden_size)
    assert (plan.kv_heads, plan.head_size, plan.rows) == (config.kv_heads, config.head_size, 128)
    assert (plan.head.output, plan.head.candidates) == ("logits", config.vocabulary_size)
    assert [(stage.tokens, stage.stage) for stage in plan.stages] == [(1, 2), (16, 1), (64, 0)]
    assert (plan.most_tokens, plan.prompt, plan.has_history_positions) == (64, None, False)


def test_stages_of_several_histories_and_nets_of_several_layers_are_found() -> None:
    model = replace(MODEL.config, layers=5)
    floats = FLOATS | {
        f"model.layers.{layer}.{name}": FLOATS[f"model.layers.0.{name}"]
        for layer in range(2, 5)
        for name in (
            key.removeprefix("model.layers.0.") for key in FLOATS if key.startswith("model.layers.0.")
        )
    }
    nets = NumpyDevice(
        model, floats, stages=(1, 16), histories=(32, 64), context=128, layers_per_net=2, head_rows=(1, 4, 16)
    ).nets
    plan = plan_nets(nets)
    assert plan.layers_of_net == (2, 2, 1)
    assert [(stage.history, stage.tokens) for stage in plan.stages] == [
        (history, tokens) for history in (32, 64, 128) for tokens in (1, 16)
    ]
    assert [(stage.tokens, stage.stage) for stage in plan.head.stages] == [(1, 2), (4, 1), (16, 0)]
    assert plan.rows == 128


def test_positions_of_the_history_are_found() -> None:
    model = random_weights("alibi", 4)
    plan = plan_nets(NumpyDevice(model.config, float_weights(model), layers_per_net=2).nets)
    assert plan.has_history_positions
    assert plan.layers_of_net == (2,)


def test_the_converters_prompt_net_reads_no_history() -> None:
    plan = plan_nets(CONVERTER)
    assert [(stage.tokens, stage.history) for stage in plan.stages] == [(1, 128)]
    assert plan.prompt is not None
    assert (plan.prompt.family, plan.prompt.tokens, plan.most_tokens) == ("block", 64, 64)


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
        (
            "lm_head",
            head_that_gives(TensorInfo("x", "int8", (1, 9))),
            r"lm_head gives \[\[\('int8', 9\)\]\] for \[1\] rows",
        ),
        ("lm_head", lambda net: change_input(net, 0, shape=(1, 7)), "lm_head gives"),
    ],
)
def test_nets_that_make_no_model_are_named(
    net: str, change: Callable[[NetInfo], NetInfo] | None, message: str
) -> None:
    nets = {name: info for name, info in OWN.items() if name != net or change is not None}
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
        (3, {"shape": (1, 128, 9, 9)}),
        (4, {"dtype": "float32"}),
    ],
)
def test_a_block_of_another_form_is_refused(index: int, changes: dict[str, object]) -> None:
    nets = {
        name: change_input(net, index, **changes) if name.startswith("block") else net
        for name, net in OWN.items()
    }
    with pytest.raises(
        ArtifactError, match=r"block_cache_0, stage 0: takes .* which is not a block that this engine"
    ):
        plan_nets(nets)


def test_an_embedding_without_the_stage_of_a_block_is_refused() -> None:
    nets = {name: net for name, net in CONVERTER.items() if name != "embedding_cache"}
    with pytest.raises(ArtifactError, match="the embedding has no stage of 1 tokens"):
        plan_nets(nets)


def test_nets_without_a_stage_of_one_token_behind_all_rows_are_refused() -> None:
    """Where the free rows are scattered, one token is all that fits without a copy."""
    nets = {
        name: replace(net, stages=net.stages[:-1]) if name.startswith("block") else net
        for name, net in OWN.items()
    }
    with pytest.raises(ArtifactError, match="block_cache_0 has no stage of 1 token and 128 rows"):
        plan_nets(nets)
