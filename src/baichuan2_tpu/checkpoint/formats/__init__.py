"""Read one file format per module, safely: safetensors, GGUF, and torch's pickles as data.

Not here: what the tensors of a checkpoint mean (``checkpoint.layout``).
"""
