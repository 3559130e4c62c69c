# The part of lm-evaluation-harness 0.4.13 that evaluation uses; its own annotations leave much unknown.
