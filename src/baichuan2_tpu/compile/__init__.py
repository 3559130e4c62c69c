"""Compile a quantised checkpoint to a bundle for the BM1684X. Not here: running one (``engine``)."""
