"""An estimate as JSON values, and in words where it comes from and what it leaves out.

Not here: tables (``cli``), adding up (``costs``).
"""

from __future__ import annotations

from baichuan2_tpu.estimate.costs import (
    FLOPS_PER_S,
    PROMPT_BESIDE_ANSWERS,
    READ_BYTES_PER_S,
    Cost,
    Estimate,
    Step,
)
from baichuan2_tpu.manifest import Manifest
from baichuan2_tpu.memory import memory_need

__all__ = ["CEILINGS", "HELD_AGAINST", "LEFT_OUT", "kv_bytes_per_token", "method", "to_json"]

CEILINGS = (
    f"{READ_BYTES_PER_S / 1e9:.1f} GB/s, the cycle model's own limit",
    f"{FLOPS_PER_S / 1e12:.0f} TFLOPS in half precision, the data sheet of the BM1684X",
)
"""What the roofline is made of, with its sources."""

LEFT_OUT = (
    "the host: choosing a token, gathering embeddings, building masks, starting every launch",
    "what is moved between host and device: states, positions, masks, logits",
    "traffic between devices, other users of the memory, a lower clock when the chip is hot",
)
"""What a real device adds to the time of the launches."""

HELD_AGAINST = (
    "the vendor's Qwen-7B sample measures 0.97 to 1.02 of such an estimate: it copies nothing on the device",
    "the vendor's Baichuan2 sample measures 1.37 of it: 64 copies on the device per token, about 0.3 ms each",
    "the engine here is like the first: keys and values are written where they stay; not measured yet",
)
"""What is known of real devices. Source: docs/performance-bm1684x.md; the 0.3 ms are inferred."""


def to_json(figures: Estimate) -> dict[str, object]:
    """Return every figure under a name that says its unit."""
    manifest, total = figures.manifest, figures.decode.total
    kv_bytes = kv_bytes_per_token(manifest)
    first_tokens = figures.first_tokens
    return {
        "is_measured": False,
        "method": method(manifest),
        "chip": manifest.chip,
        "devices": manifest.devices,
        "layers": manifest.model.layers,
        "layers_per_net": manifest.layers_per_net,
        "bits": manifest.bits,
        "group_size": manifest.group_size,
        "head": manifest.head,
        "head_output": manifest.head_output,
        "head_rows": list(manifest.head_rows),
        "embedding": manifest.embedding,
        "context": manifest.context,
        "rows": manifest.rows,
        "decode_ms": round(total.time_ms, 3),
        "decode_tok_per_s": round(figures.decode_tok_per_s, 3),
        "decode_roofline_ms": round(total.roofline_ms, 3),
        "decode_launches": total.launches,
        "decode_parts": _parts_json(figures.decode),
        "bytes_per_token": total.read_bytes,
        "head_share": round(figures.decode.head.time_ms / total.time_ms, 4),
        "answers": [_answers_json(users, rows, step) for (users, rows), step in figures.answers.items()],
        "beside_answers": _loaded_json(figures),
        "first_token_ms": {str(n): round(step.total.time_ms, 3) for n, step in first_tokens.items()},
        "first_token_roofline_ms": {
            str(n): round(step.total.roofline_ms, 3) for n, step in first_tokens.items()
        },
        "first_token_stages": {str(n): list(step.stages) for n, step in first_tokens.items()},
        "kv_bytes_per_token": kv_bytes,
        "kv_bytes": {str(n): n * kv_bytes for n in first_tokens},
        "stages": [stage._asdict() | _cost_json(cost) for stage, cost in figures.stages.items()],
        "read_ceiling_bytes_per_s": READ_BYTES_PER_S,
        "flops_ceiling_per_s": FLOPS_PER_S,
        "left_out": list(LEFT_OUT),
        "held_against": list(HELD_AGAINST),
    }


def method(manifest: Manifest) -> str:
    """Say where the figures come from."""
    return " ".join(["cycle model of TPU-MLIR", manifest.tools.get("tpu_mlir", "")]).rstrip()


def kv_bytes_per_token(manifest: Manifest) -> int:
    """Return what the keys and values of a token take, on all devices together."""
    return memory_need(manifest.model).kv_bytes_per_token


def _answers_json(users: int, rows: int, step: Step) -> dict[str, object]:
    """Return one step of all answers; a token of each takes its whole time."""
    return {
        "users": users,
        "rows_in_use": rows,
        "step_ms": round(step.total.time_ms, 3),
        "tok_per_s": round(1000 * users / step.total.time_ms, 3),
        "launches": step.total.launches,
        "roofline_ms": round(step.total.roofline_ms, 3),
        "stages": list(step.stages),
    }


def _loaded_json(figures: Estimate) -> list[dict[str, object]]:
    """Return what a prompt costs that rides along with answers, as its first token and as a share."""
    return [
        {
            "users": users,
            "rows_in_use": rows,
            "prompt_tokens": PROMPT_BESIDE_ANSWERS,
            "first_token_ms": round(step.total.time_ms, 3),
            "of_answers_alone": round(step.total.time_ms / figures.answers[users, rows].total.time_ms, 4),
        }
        for (users, rows), step in figures.loaded.items()
    ]


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
