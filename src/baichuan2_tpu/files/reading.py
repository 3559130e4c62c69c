"""Read small files and the JSON objects in them, with errors that name the file and the next step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import cast

from baichuan2_tpu.errors import Baichuan2Error, CheckpointError

__all__ = ["find_json", "parse_json", "read_bytes", "read_json"]

_ADVICE = "fetch the file again"


def read_bytes(path: Path, error: type[Baichuan2Error] = CheckpointError, advice: str = _ADVICE) -> bytes:
    """Return the content of a file.

    Raises: ``error``, which ends with ``advice``, when it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as cause:
        raise error(f"{path}: cannot be read ({cause.strerror or cause}); {advice}") from cause


def read_json(
    path: Path, error: type[Baichuan2Error] = CheckpointError, advice: str = _ADVICE
) -> dict[str, object]:
    """Return the object that a JSON file holds.

    Raises: ``error``, which ends with ``advice``, when there is none that can be read.
    """
    try:
        return parse_json(read_bytes(path, error, advice))
    except ValueError as cause:
        raise error(f"{path}: {cause}; {advice}") from cause


def find_json(
    path: Path, error: type[Baichuan2Error] = CheckpointError, advice: str = _ADVICE
) -> dict[str, object] | None:
    """Return the object that a JSON file holds; None when there is no such file.

    Raises: ``error`` as ``read_json`` does.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        pass  # reading it says why
    return read_json(path, error, advice)


def parse_json(content: str | bytes) -> dict[str, object]:
    """Return the object that a JSON text holds.

    Raises: ValueError saying what it is instead.
    """
    try:
        values: object = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON ({error})") from error
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004 - one fault for whoever reads a file
            f"holds a {type(values).__name__}, not a JSON object"
        )
    return cast("dict[str, object]", values)
