"""Read checkpoints that other tools quantised, one module per form, as integers or as float weights.

Not here: our own quantised checkpoints (``quantized_checkpoint``), repacking (``quantize``).
"""
