"""Where this package keeps what it can make or fetch again.

Not here: what lies there (``wheels``, ``models``, ``resolve``, ``toolchain``).
"""

from __future__ import annotations

from pathlib import Path

import platformdirs

__all__ = ["cache_folder", "fetched_folder"]


def cache_folder() -> Path:
    """Return the user's cache folder of this package, which may not exist yet."""
    return platformdirs.user_cache_path("baichuan2-tpu", appauthor=False)


def fetched_folder(name: str, revision: str | None = None) -> Path:
    """Return where a model goes when nobody says; a revision that is asked for has a folder of its own."""
    suffix = "" if revision is None else f"@{revision.replace('/', '-')}"
    return cache_folder() / "fetched" / f"{name}{suffix}"
