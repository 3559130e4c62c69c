"""The vendor's ``.bmodel`` file: its layout, its header, and its weights taken out and put in.

Not here: compiling one (``compile``), running one (``engine.compiled``).
"""
