"""Slow numpy forward passes that everything fast is compared with.

Not here: the engines (``engine``), judging how far one is off (``doctor``, ``evaluate``).
"""
