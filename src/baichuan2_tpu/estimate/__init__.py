"""What a bundle costs by the compiler's cycle model: an estimate out of its manifest, never a measurement.

Not here: reading the compiler's profile (``compile.profile``), measuring an engine (``bench``).
"""

from baichuan2_tpu.estimate.costs import Cost, Estimate, Step, estimate, prompt_lengths
from baichuan2_tpu.estimate.picture import draw
from baichuan2_tpu.estimate.report import CEILINGS, LEFT_OUT, kv_bytes_per_token, method, to_json

__all__ = [
    "CEILINGS",
    "LEFT_OUT",
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
