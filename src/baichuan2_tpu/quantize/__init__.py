"""Make a quantised checkpoint out of a float one.

Not here: reading checkpoints (``checkpoint``), drawing a progress bar (``cli``).
"""

from baichuan2_tpu.quantize.calibration_text import Calibration
from baichuan2_tpu.quantize.driver import Progress, QuantizeEvent, quantize

__all__ = ["Calibration", "Progress", "QuantizeEvent", "quantize"]
