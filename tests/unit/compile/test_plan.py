"""The plan of a build: which nets, in which order, and how large; sizes are those of real compiled nets."""

from dataclasses import replace

import pytest

from baichuan2_tpu.compile.plan import Plan, make_plan
from baichuan2_tpu.compile.settings import CompileSettings
from baichuan2_tpu.shapes import shape_config

SETTINGS = CompileSettings(bits=4, head="w8", context=512, prefill=(16, 64, 256))


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
    settings = replace(SETTINGS, embedding="device", prefill=(16,))
    plan = make_plan(replace(shape_config("baichuan2-7b", 4), layers=2), settings, 2)
    assert [unit.name for unit in plan.units] == ["embedding", "lm_head", "block_cache_0", "block_cache_1"]
    assert plan.names == ("embedding", "block_cache_0", "block_cache_1", "lm_head")


def test_the_largest_stage_comes_first_and_the_head_has_one(plan: Plan) -> None:
    stages = {unit.name: unit.stages for unit in plan.units}
    assert (stages["block_cache_31"], stages["lm_head"]) == ((256, 64, 16, 1), (1,))
    assert plan.stages == 32 * 4 + 1


def test_the_7b_stays_inside_what_the_build_promises(plan: Plan) -> None:
    assert plan.time_s < 600
    assert plan.memory_bytes < 8e9
    assert plan.peak_disk_bytes < plan.result_bytes + 5e9
    wide = make_plan(shape_config("baichuan2-7b", 8), replace(SETTINGS, bits=8), 2)
    assert wide.time_s < 600
    assert wide.memory_bytes < 8e9
    assert wide.peak_disk_bytes < wide.result_bytes + 5e9


def test_the_device_holds_weights_and_a_history_of_the_whole_context(plan: Plan) -> None:
    weights = sum(unit.weight_bytes for unit in plan.units)
    assert plan.device_bytes == weights + 32 * 2 * 512 * 4096 * 2


def test_more_jobs_take_less_time_and_more_memory(plan: Plan) -> None:
    alone = make_plan(shape_config("baichuan2-7b", 4), SETTINGS, 1)
    assert alone.time_s > plan.time_s
    assert alone.memory_bytes < plan.memory_bytes
    tiny = make_plan(shape_config("tiny", 4), SETTINGS, 100)
    assert tiny.jobs == len(tiny.units)  # more could not be busy
