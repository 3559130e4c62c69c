"""Figures carry their units in their names, and say that nothing was measured."""

import json

from baichuan2_tpu.estimate import HELD_AGAINST, LEFT_OUT, estimate, to_json
from models.bundle_manifest import READ_BYTES, bundle_manifest


def test_json_holds_every_figure() -> None:
    values = to_json(estimate(bundle_manifest()))
    values = json.loads(json.dumps(values))
    assert values["is_measured"] is False
    assert values["method"] == "cycle model of TPU-MLIR 1.30.2"
    assert (values["decode_ms"], values["decode_launches"]) == (4.0, 3)
    assert values["decode_tok_per_s"] == 250.0
    assert values["bytes_per_token"] == 2 * READ_BYTES + READ_BYTES // 4
    assert values["head_share"] == 0.25
    assert values["first_token_ms"] == {"1": 4.0, "14": 6.0, "64": 9.0, "128": 17.0}
    assert values["first_token_stages"] == {
        "1": [[1, 32]],
        "14": [[16, 128]],
        "64": [[64, 128]],
        "128": [[64, 128], [64, 128]],
    }
    assert values["left_out"] == list(LEFT_OUT)
    assert values["held_against"] == list(HELD_AGAINST)


def test_json_lists_steps_by_users_and_rows_in_use() -> None:
    values = to_json(estimate(bundle_manifest()))
    steps = {(step["users"], step["rows_in_use"]): step for step in values["answers"]}  # pyright: ignore[reportGeneralTypeIssues,reportUnknownVariableType]
    assert steps[16, 128]["step_ms"] == 2 * 2.5 + 1.5
    assert steps[16, 128]["tok_per_s"] == round(16_000 / 6.5, 3)
    beside = {(step["users"], step["rows_in_use"]): step for step in values["beside_answers"]}  # pyright: ignore[reportGeneralTypeIssues,reportUnknownVariableType]
    assert beside[16, 128]["first_token_ms"] == 2 * 4.0 + 1.5 + 1.0
    assert beside[16, 128]["of_answers_alone"] == round(10.5 / 6.5, 4)


def test_kv_cache_grows_with_the_tokens_held() -> None:
    values = to_json(estimate(bundle_manifest()))
    # Keys and values of 2 layers, 4 heads of 32 in float16.
    assert values["kv_bytes_per_token"] == 2 * 2 * 4 * 32 * 2
    assert values["kv_bytes"] == {"1": 1024, "14": 14_336, "64": 65_536, "128": 131_072}


def test_unknown_compiler_version_is_left_away() -> None:
    assert to_json(estimate(bundle_manifest(tools={})))["method"] == "cycle model of TPU-MLIR"
