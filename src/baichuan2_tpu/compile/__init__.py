"""Compile a checkpoint into a bundle for the TPU, from MLIR text that this package writes itself.

Not here: running a bundle (``engine``), installing the compiler (``toolchain``). This part and ``engine``
never import each other; they meet in ``manifest``.
"""
