"""Engines compute logits: ``base`` is the seam, one file an engine, ``registry`` opens by name."""
