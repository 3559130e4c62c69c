"""The plan of a build: which nets, in which order, and how large; sizes are those of real compiled nets."""

from dataclasses import replace
from typing import Literal

import pytest

from baichuan2_tpu.compile.plan import Plan, default_layers_per_net, make_plan
from baichuan2_tpu.compile.settings import CompileSettings, default_stages
from baichuan2_tpu.manifest import Stage
from baichuan2_tpu.shapes import shape_config

STAGES = default_stages(512, 512)
SETTINGS = CompileSettings(bits=4, head="w8", context=512, rows=512, stages=STAGES, layers_per_net=1)


@pytest.fixture
def plan() -> Plan:
    return make_plan(shape_config("baichuan2-7b", 4), SETTINGS, 2)


def test_weights_have_the_size_of_the_compiled_nets(plan: Plan) -> None:
    # Read from bmodels that TPU-MLIR 1.30.2 made of this shape.
    sizes = {unit.name: unit.weight_bytes for unit in plan.units}
    assert (sizes["lm_head"], sizes["block_cache_0"]) == (538_992_640, 110_952_448)


def test_a_head_of_floats_and_an_embedding_on_the_device_are_counted(plan: Plan) -> None:
    config = shape_config("baichuan2-7b", 4)
    table = config.vocabulary_size * config.hidden_size * 2
    changed = make_plan(config, replace(SETTINGS, head="f16", embedding="device"), 2)
    sizes = {unit.name: unit.weight_bytes for unit in changed.units}
    assert sizes["embedding"] == table
    assert sizes["lm_head"] == table + config.hidden_size * 2
    assert (plan.embedding_bytes, changed.embedding_bytes) == (table, 0)


def test_the_largest_nets_begin_and_the_bundle_has_them_in_forward_order() -> None:
    settings = replace(SETTINGS, embedding="device", stages=(Stage(1, 512), Stage(16, 512)))
    plan = make_plan(replace(shape_config("baichuan2-7b", 4), layers=2), settings, 2)
    assert [unit.name for unit in plan.units] == ["embedding", "lm_head", "block_cache_0", "block_cache_1"]
    assert plan.names == ("embedding", "block_cache_0", "block_cache_1", "lm_head")


def test_the_largest_stage_comes_first(plan: Plan) -> None:
    stages = {unit.name: unit.stages for unit in plan.units}
    assert stages["block_cache_31"] == STAGES[::-1]
    assert stages["block_cache_31"][0] == (256, 512)
    assert stages["lm_head"] == ((32, 0), (16, 0), (1, 0))
    assert plan.stages == 32 * len(STAGES) + 3


def test_layers_in_one_net_save_launches_and_share_a_table() -> None:
    config = replace(shape_config("baichuan2-7b", 4), layers=6)
    plan = make_plan(config, replace(SETTINGS, layers_per_net=4), 2)
    assert plan.names == ("block_cache_0", "block_cache_1", "lm_head")
    assert plan.launches == 3
    one = make_plan(config, SETTINGS, 2)
    saved = sum(unit.weight_bytes for unit in one.units) - sum(unit.weight_bytes for unit in plan.units)
    assert saved == 4 * 2 * 512 * 128 * 2


def test_an_embedding_has_a_stage_for_every_number_of_tokens() -> None:
    config = shape_config("tiny", 4)
    stages = default_stages(1024, 1024)
    plan = make_plan(config, replace(SETTINGS, embedding="device", rows=1024, stages=stages), 2)
    assert plan.units[0].stages == tuple(Stage(tokens, 0) for tokens in (256, 128, 64, 32, 16, 1))


@pytest.mark.parametrize(
    ("shape", "bits", "layers"),
    [("baichuan2-7b", 4, 4), ("baichuan2-7b", 8, 4), ("baichuan2-7b", 16, 2), ("baichuan2-13b", 8, 2)],
)
def test_as_many_layers_go_into_a_net_as_two_jobs_have_memory_for(
    shape: str, bits: Literal[4, 8, 16], layers: int
) -> None:
    config = shape_config(shape, 4 if bits == 16 else bits)
    settings = replace(SETTINGS, bits=bits)
    assert default_layers_per_net(config, settings) == layers
    assert make_plan(config, replace(settings, layers_per_net=layers), 2).memory_bytes < 8e9


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [512, 4096])
def test_the_7b_stays_inside_what_the_build_promises(bits: Literal[4, 8], rows: int) -> None:
    stages = default_stages(rows, rows)
    settings = replace(SETTINGS, bits=bits, context=rows, rows=rows, stages=stages, layers_per_net=4)
    plan = make_plan(shape_config("baichuan2-7b", bits), settings, 2)
    assert plan.time_s < 900
    assert plan.memory_bytes < 8e9
    assert plan.peak_disk_bytes < plan.result_bytes + 5e9
    assert plan.launches == 9


def test_the_device_holds_weights_instructions_and_all_rows(plan: Plan) -> None:
    weights = sum(unit.weight_bytes for unit in plan.units)
    assert plan.device_bytes == weights + plan.instruction_bytes + 32 * 2 * 512 * 4096 * 2
    more = make_plan(shape_config("baichuan2-7b", 4), replace(SETTINGS, rows=1024), 2)
    assert more.device_bytes - plan.device_bytes == 32 * 2 * 512 * 4096 * 2


def test_more_jobs_take_less_time_and_more_memory(plan: Plan) -> None:
    alone = make_plan(shape_config("baichuan2-7b", 4), SETTINGS, 1)
    assert alone.time_s > plan.time_s
    assert alone.memory_bytes < plan.memory_bytes
    tiny = make_plan(shape_config("tiny", 4), SETTINGS, 100)
    assert tiny.jobs == len(tiny.units)  # more could not be busy
