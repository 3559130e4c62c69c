"""Serving many conversations at once on one engine.

Not here: one conversation in one thread (``chat``).
"""
