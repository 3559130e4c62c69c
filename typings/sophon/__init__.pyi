# SOPHON's Python packages; only sail is used.
