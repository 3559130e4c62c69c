"""Prove by computing: that an engine, a compiled net and the toolchain give the right numbers here."""
