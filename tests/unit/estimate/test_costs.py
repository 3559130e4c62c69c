"""Launches add up to steps of several answers and to a first token, beside what their bytes allow."""

from dataclasses import replace

import pytest

from baichuan2_tpu.errors import ArtifactError
from baichuan2_tpu.estimate import USERS, Cost, estimate, prompt_lengths
from baichuan2_tpu.manifest import NetCost, Stage
from models.bundle_manifest import HEAD_MS, LAYER_MS, READ_BYTES, bundle_manifest

SHORT, LONG = Stage(1, 32), Stage(1, 128)
BYTES_PER_MS = 54_000_000


def test_a_token_runs_every_layer_and_the_head() -> None:
    found = estimate(bundle_manifest())
    total = found.decode.total
    assert (total.launches, total.time_ms) == (3, 2 * LAYER_MS[SHORT] + HEAD_MS[1])
    assert total.read_bytes == 2 * READ_BYTES + READ_BYTES // 4
    assert found.decode_tok_per_s == 1000 / 4.0
    assert list(found.decode.parts()) == ["layers", "head"]


def test_a_launch_reads_as_few_rows_as_are_in_use() -> None:
    found = estimate(bundle_manifest())
    assert found.histories == (32, 128)
    assert found.answers[1, 32].stages == (SHORT,)
    assert found.answers[1, 128].stages == (LONG,)
    assert found.answers[1, 128].total.time_ms == 2 * LAYER_MS[LONG] + HEAD_MS[1]


def test_several_answers_take_one_launch_of_each_net() -> None:
    found = estimate(bundle_manifest())
    for users, stage in ((1, LONG), (4, Stage(16, 128)), (16, Stage(16, 128)), (32, Stage(64, 128))):
        step = found.answers[users, 128]
        assert step.stages == (stage,)
        assert step.layers.time_ms == 2 * LAYER_MS[stage]
    # Two launches of 16 rows of the head for 32 answers.
    assert found.answers[32, 128].head.time_ms == 2 * HEAD_MS[16]
    assert {users for users, _ in found.answers} == set(USERS)


def test_a_step_that_would_write_behind_a_history_reads_the_next_longer_one() -> None:
    """A prompt of 64 was said to take the stage of 32 rows, which it would have overwritten."""
    costs = {Stage(1, 32): 1.0, Stage(16, 32): 1.5, Stage(64, 32): 2.0}
    costs |= {Stage(tokens, 128): 2 * ms for (tokens, _), ms in costs.items()}
    manifest = bundle_manifest(stages=tuple(costs))
    times = [replace(cost, time_ms=costs.get(cost.stage, 1.0)) for cost in manifest.costs]
    found = estimate(replace(manifest, costs=tuple(times)), [16, 33, 64])
    assert found.first_tokens[16].stages == (Stage(16, 32),)
    assert found.first_tokens[33].stages == found.first_tokens[64].stages == (Stage(64, 128),)


def test_more_answers_than_there_are_rows_are_left_out() -> None:
    stages = (Stage(1, 32), Stage(16, 32))
    found = estimate(bundle_manifest(context=32, rows=32, stages=stages, costs=()))
    assert found.answers.keys() == {(users, 32) for users in USERS}
    assert not found.loaded, "a prompt of 48 does not fit"


def test_layers_in_one_net_are_one_launch() -> None:
    found = estimate(bundle_manifest(layers_per_net=2))
    assert found.decode.total.launches == 2
    assert found.stages[LONG].launches == 1


def test_a_prompt_rides_along_with_answers() -> None:
    found = estimate(bundle_manifest())
    step = found.loaded[16, 128]
    assert step.stages == (Stage(64, 128),)
    assert step.head.launches == 2  # 16 rows and one


def test_a_prompt_runs_its_stages_and_the_head_once() -> None:
    found = estimate(bundle_manifest(), [14, 65, 128])
    assert {
        length: [stage.tokens for stage in step.stages] for length, step in found.first_tokens.items()
    } == {
        14: [16],
        65: [64, 1],
        128: [64, 64],
    }
    assert found.first_tokens[14].total.time_ms == 2 * LAYER_MS[Stage(16, 128)] + HEAD_MS[1]
    # The last of 65 tokens sees those before it, for which the short stage is not enough.
    assert found.first_tokens[65].stages[-1] == LONG
    assert found.first_tokens[128].head.launches == 1


def test_embedding_counts_only_where_the_device_gathers_it() -> None:
    on_device = estimate(bundle_manifest(embedding="device"), [128])
    embedding = on_device.first_tokens[128].embedding
    assert (embedding.launches, embedding.time_ms, embedding.read_bytes) == (2, 0.5, 2 * 64 * 256)
    assert list(on_device.decode.parts()) == ["layers", "head", "embedding"]
    assert estimate(bundle_manifest(), [128]).first_tokens[128].embedding == Cost()


def test_roofline_is_the_slower_of_reading_and_multiplying() -> None:
    reading = NetCost("net", 1, 0, 5.0, BYTES_PER_MS, 10)
    multiplying = NetCost("net", 512, 0, 5.0, 10, 32 * 10**9)
    assert Cost.of([reading]).roofline_ms == pytest.approx(1.0)
    assert Cost.of([multiplying]).roofline_ms == pytest.approx(2.0)
    # One launch does not read ahead for the next: limits add up.
    assert Cost.of([reading, multiplying]).roofline_ms == pytest.approx(3.0)


def test_missing_cost_names_net_and_stage() -> None:
    whole = bundle_manifest()
    part = replace(whole, costs=tuple(cost for cost in whole.costs if cost.net != "block_cache_1"))
    with pytest.raises(
        ArtifactError, match=r"manifest.json has no cost of block_cache_1 at 1 tokens and 32 rows; compile"
    ):
        estimate(part)


@pytest.mark.parametrize(
    ("context", "lengths"),
    [
        (1, (1,)),
        (32, (1, 14, 32)),
        (512, (1, 14, 64, 128, 256, 512)),
        (600, (1, 14, 64, 128, 256, 512, 600)),
    ],
)
def test_prompts_shown_end_with_a_full_context(context: int, lengths: tuple[int, ...]) -> None:
    assert prompt_lengths(context) == lengths
