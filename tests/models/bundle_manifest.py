"""A manifest as ``compile`` would write it, with round numbers for costs; there is no bmodel beside it."""

from typing import Any

from baichuan2_tpu.manifest import Manifest, NetCost
from baichuan2_tpu.shapes import shape_config

__all__ = ["bundle_manifest"]

LAYER_MS = {1: 2.0, 16: 2.5, 64: 4.0}
HEAD_MS = 1.0
READ_BYTES = 2**20


def bundle_manifest(**changes: Any) -> Manifest:
    """Return the manifest of two layers at 4 bits, context 128; ``changes`` replace its values."""
    values: dict[str, Any] = {
        "model": shape_config("tiny", 4),
        "bits": 4,
        "head": "w8",
        "head_output": "logits",
        "embedding": "disk",
        "dtype": "float16",
        "context": 128,
        "prefill": (16, 64),
        "devices": 1,
        "chip": "bm1684x",
        "bmodel": "model.bmodel",
        "device_bytes": 1_000_000,
        "source": "tiny sha256:0",
        "tools": {"tpu_mlir": "1.30.2"},
        "files": {},
    }
    values |= changes
    return Manifest(costs=_costs(values["model"].layers, values["context"]), **values)


def _costs(layers: int, context: int) -> tuple[NetCost, ...]:
    """Return what each launch costs: each layer, the head, and an embedding whether it is used or not."""
    costs = [
        NetCost(f"block_cache_{layer}", tokens, context, time_ms, READ_BYTES, tokens * 10**9)
        for layer in range(layers)
        for tokens, time_ms in LAYER_MS.items()
    ]
    costs += [NetCost("embedding", tokens, 0, 0.25, tokens * 256, 0) for tokens in LAYER_MS]
    return (*costs, NetCost("lm_head", 1, 0, HEAD_MS, READ_BYTES // 4, 10**6))
