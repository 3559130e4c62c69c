"""What a bundle costs by the compiler's cycle model: an estimate out of its manifest, never a measurement.

Not here: reading the compiler's profile (``compile.cycle_profile``), measuring an engine (``bench``).
"""

from baichuan2_tpu.estimate.costs import (
    PROMPT_BESIDE_ANSWERS,
    USERS,
    Cost,
    Estimate,
    Step,
    estimate,
    prompt_lengths,
)
from baichuan2_tpu.estimate.picture import draw
from baichuan2_tpu.estimate.report import (
    CEILINGS,
    HELD_AGAINST,
    LEFT_OUT,
    kv_bytes_per_token,
    method,
    to_json,
)

__all__ = [
    "CEILINGS",
    "HELD_AGAINST",
    "LEFT_OUT",
    "PROMPT_BESIDE_ANSWERS",
    "USERS",
    "Cost",
    "Estimate",
    "Step",
    "draw",
    "estimate",
    "kv_bytes_per_token",
    "method",
    "prompt_lengths",
    "to_json",
]
