"""An estimate as JSON values, and in words where it comes from and what it leaves out.

Not here: tables (``cli``), adding up (``costs``).
"""

from __future__ import annotations

from baichuan2_tpu.estimate.costs import FLOPS_PER_S, READ_BYTES_PER_S, Cost, Estimate, Step
from baichuan2_tpu.manifest import Manifest
from baichuan2_tpu.memory import memory_need

__all__ = ["CEILINGS", "LEFT_OUT", "kv_bytes_per_token", "method", "to_json"]

CEILINGS = (
    f"{READ_BYTES_PER_S / 1e9:.1f} GB/s, the cycle model's own limit",
    f"{FLOPS_PER_S / 1e12:.0f} TFLOPS in half precision, the data sheet of the BM1684X",
)
"""What the roofline is made of, with its sources."""

LEFT_OUT = (
    "the host: choosing a token, gathering embeddings, building masks, starting every launch",
    "copies between launches: states, positions, masks, new rows of keys and values, logits",
    "traffic between devices, other users of the memory, a lower clock when the chip is hot",
    "for scale: the vendor's builds, measured on an SE7-32, take 1.2 to 1.4 times what is estimated",
)
"""What a real device adds to the time of the launches. Source of the scale: docs/performance-bm1684x.md."""


def to_json(found: Estimate) -> dict[str, object]:
    """Return every figure under a name that says its unit."""
    manifest, total = found.manifest, found.decode.total
    kv_bytes = kv_bytes_per_token(manifest)
    first_tokens = found.first_tokens
    return {
        "is_measured": False,
        "method": method(manifest),
        "chip": manifest.chip,
        "devices": manifest.devices,
        "layers": manifest.model.layers,
        "bits": manifest.bits,
        "head": manifest.head,
        "head_output": manifest.head_output,
        "embedding": manifest.embedding,
        "context": manifest.context,
        "prefill": list(manifest.prefill),
        "decode_ms": round(total.time_ms, 3),
        "decode_tok_per_s": round(found.decode_tok_per_s, 3),
        "decode_roofline_ms": round(total.roofline_ms, 3),
        "decode_parts": _parts_json(found.decode),
        "bytes_per_token": total.read_bytes,
        "head_share": round(found.decode.head.time_ms / total.time_ms, 4),
        "first_token_ms": {str(n): round(step.total.time_ms, 3) for n, step in first_tokens.items()},
        "first_token_roofline_ms": {
            str(n): round(step.total.roofline_ms, 3) for n, step in first_tokens.items()
        },
        "first_token_pieces": {str(n): list(step.pieces) for n, step in first_tokens.items()},
        "kv_bytes_per_token": kv_bytes,
        "kv_bytes": {str(n): n * kv_bytes for n in first_tokens},
        "stages": {str(tokens): _parts_json(step) for tokens, step in found.stages.items()},
        "read_ceiling_bytes_per_s": READ_BYTES_PER_S,
        "flops_ceiling_per_s": FLOPS_PER_S,
        "left_out": list(LEFT_OUT),
    }


def method(manifest: Manifest) -> str:
    """Say where the figures come from."""
    return " ".join(["cycle model of TPU-MLIR", manifest.tools.get("tpu_mlir", "")]).rstrip()


def kv_bytes_per_token(manifest: Manifest) -> int:
    """Return what the keys and values of a token take, on all devices together."""
    return memory_need(manifest.model).kv_bytes_per_token


def _parts_json(step: Step) -> dict[str, object]:
    return {name: _cost_json(cost) for name, cost in step.parts().items()}


def _cost_json(cost: Cost) -> dict[str, object]:
    return {
        "launches": cost.launches,
        "time_ms": round(cost.time_ms, 3),
        "roofline_ms": round(cost.roofline_ms, 3),
        "read_bytes": cost.read_bytes,
        "flops": cost.flops,
    }
