"""Damaged and hostile files for every reader: scripts/fuzz runs as many as it is told, the suite a few."""
