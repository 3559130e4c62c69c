"""Figures carry their units in their names, and say that nothing was measured."""

import json

from baichuan2_tpu.estimate import LEFT_OUT, estimate, to_json
from models.bundle_manifest import READ_BYTES, bundle_manifest


def test_json_holds_every_figure() -> None:
    values = to_json(estimate(bundle_manifest()))
    assert json.loads(json.dumps(values)) == values
    assert values["is_measured"] is False
    assert values["method"] == "cycle model of TPU-MLIR 1.30.2"
    assert values["decode_ms"] == 5.0
    assert values["decode_tok_per_s"] == 200.0
    assert values["bytes_per_token"] == 2 * READ_BYTES + READ_BYTES // 4
    assert values["head_share"] == 0.2
    assert values["first_token_ms"] == {"1": 5.0, "14": 6.0, "64": 9.0, "128": 17.0}
    assert values["first_token_pieces"] == {"1": [1], "14": [16], "64": [64], "128": [64, 64]}
    assert values["left_out"] == list(LEFT_OUT)


def test_kv_cache_grows_with_the_tokens_held() -> None:
    values = to_json(estimate(bundle_manifest()))
    # Keys and values of 2 layers, 4 heads of 32 in float16.
    assert values["kv_bytes_per_token"] == 2 * 2 * 4 * 32 * 2
    assert values["kv_bytes"] == {"1": 1024, "14": 14_336, "64": 65_536, "128": 131_072}


def test_unknown_compiler_version_is_left_away() -> None:
    assert to_json(estimate(bundle_manifest(tools={})))["method"] == "cycle model of TPU-MLIR"
