"""Launches add up to a token and to a first token, beside what their bytes and operations allow."""

from dataclasses import replace

import pytest

from baichuan2_tpu.errors import ArtifactError
from baichuan2_tpu.estimate import Cost, estimate, prompt_lengths
from baichuan2_tpu.manifest import NetCost
from models.bundle_manifest import HEAD_MS, LAYER_MS, READ_BYTES, bundle_manifest

GIBIBYTES_64 = 2**36


def test_a_token_runs_every_layer_and_the_head() -> None:
    found = estimate(bundle_manifest())
    total = found.decode.total
    assert (total.launches, total.time_ms) == (3, 2 * LAYER_MS[1] + HEAD_MS)
    assert total.read_bytes == 2 * READ_BYTES + READ_BYTES // 4
    assert found.decode_tok_per_s == 1000 / 5.0
    assert list(found.decode.parts()) == ["layers", "head"]


def test_a_prompt_runs_its_pieces_and_the_head_once() -> None:
    found = estimate(bundle_manifest(), [14, 65, 128])
    assert {length: step.pieces for length, step in found.first_tokens.items()} == {
        14: (16,),
        65: (64, 1),
        128: (64, 64),
    }
    assert found.first_tokens[14].total.time_ms == 2 * LAYER_MS[16] + HEAD_MS
    assert found.first_tokens[65].total.time_ms == 2 * (LAYER_MS[64] + LAYER_MS[1]) + HEAD_MS


def test_embedding_counts_only_where_the_device_gathers_it() -> None:
    on_device = estimate(bundle_manifest(embedding="device"), [128])
    embedding = on_device.first_tokens[128].embedding
    assert (embedding.launches, embedding.time_ms, embedding.read_bytes) == (2, 0.5, 2 * 64 * 256)
    assert list(on_device.decode.parts()) == ["layers", "head", "embedding"]
    assert estimate(bundle_manifest(), [128]).first_tokens[128].embedding == Cost()


def test_roofline_is_the_slower_of_reading_and_multiplying() -> None:
    reading = NetCost("net", 1, 0, 5.0, GIBIBYTES_64 // 1000, 10)
    multiplying = NetCost("net", 512, 0, 5.0, 10, 32 * 10**9)
    assert Cost.of([reading]).roofline_ms == pytest.approx(1.0)
    assert Cost.of([multiplying]).roofline_ms == pytest.approx(2.0)
    # One launch does not read ahead for the next: limits add up.
    assert Cost.of([reading, multiplying]).roofline_ms == pytest.approx(3.0)


def test_missing_cost_names_net_and_stage() -> None:
    whole = bundle_manifest()
    part = replace(whole, costs=tuple(cost for cost in whole.costs if cost.net != "block_cache_1"))
    with pytest.raises(
        ArtifactError, match=r"manifest.json has no cost of block_cache_1 at 1 tokens; compile"
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
