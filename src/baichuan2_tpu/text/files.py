"""Reading the small files of a checkpoint directory, with errors that name the file.

Not here: weights (``checkpoint``).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from baichuan2_tpu.errors import CheckpointError

__all__ = ["read_bytes", "read_json_object"]


def read_bytes(path: Path) -> bytes:
    """Return the content of a file.

    Raises: CheckpointError when it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CheckpointError(
            f"cannot read {path}: {exc.strerror or exc}; copy the model directory again"
        ) from exc


def read_json_object(path: Path) -> dict[str, object]:
    """Return the object a JSON file holds; a missing file counts as an empty object.

    Raises: CheckpointError when the file is there and is not a JSON object.
    """
    if not path.exists():
        return {}
    try:
        value: object = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{path} is not JSON: {exc}; copy the model directory again") from exc
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}, not an object; copy it again")
    return cast("dict[str, object]", value)
