"""Engines compute logits: ``base`` is the seam, each engine has one file, ``registry`` opens by name."""
