"""A manifest as ``compile`` would write it, with round numbers for costs; there is no bmodel beside it."""

from dataclasses import replace
from typing import Any

from baichuan2_tpu.manifest import Manifest, NetCost, Stage
from baichuan2_tpu.shapes import shape_config

__all__ = ["bundle_manifest"]

LAYER_MS = {
    Stage(1, 32): 1.5,
    Stage(1, 128): 2.0,
    Stage(16, 128): 2.5,
    Stage(64, 128): 4.0,
}
HEAD_MS = {1: 1.0, 16: 1.5}
READ_BYTES = 2**20


def bundle_manifest(**changes: Any) -> Manifest:
    """Return the manifest of two layers at 4 bits in a net each, context 128; ``changes`` replace values."""
    values: dict[str, Any] = {
        "model": shape_config("tiny", 4),
        "bits": 4,
        "head": "w8",
        "head_output": "logits",
        "embedding": "disk",
        "dtype": "float16",
        "context": 128,
        "rows": 128,
        "stages": tuple(LAYER_MS),
        "head_rows": tuple(HEAD_MS),
        "layers_per_net": 1,
        "group_size": 64,
        "devices": 1,
        "chip": "bm1684x",
        "bmodel": "model.bmodel",
        "device_bytes": 1_000_000,
        "source": "tiny sha256:0",
        "tools": {"tpu_mlir": "1.30.2"},
        "costs": (),
        "files": {},
    }
    manifest = Manifest(**values | changes)
    return manifest if manifest.costs else replace(manifest, costs=_costs(manifest))


def _costs(manifest: Manifest) -> tuple[NetCost, ...]:
    """Return what each launch costs: each net, the head, and an embedding whether it is used or not."""
    costs = [
        NetCost(net, *stage, LAYER_MS.get(stage, 2.0), READ_BYTES, stage.tokens * 10**9)
        for net in manifest.block_nets
        for stage in manifest.stages
    ]
    tokens = sorted({stage.tokens for stage in manifest.stages})
    costs += [NetCost("embedding", count, 0, 0.25, count * 256, 0) for count in tokens]
    heads = [(rows, HEAD_MS.get(rows, 2.0)) for rows in manifest.head_rows]
    return (*costs, *(NetCost("lm_head", rows, 0, ms, READ_BYTES // 4, 10**6) for rows, ms in heads))
