"""The Device seam, the vendor's libraries behind it, and the simulator.

Not here: what a model does with its nets (``engine.compiled``).
"""
