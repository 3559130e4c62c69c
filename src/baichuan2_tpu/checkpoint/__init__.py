"""Read model files: official, safetensors and GGUF checkpoints, and our own quantised ones.

Not here: making a quantised checkpoint (``quantize``), computing with one (``engine``).
"""
