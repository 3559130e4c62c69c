"""Read small files and the JSON objects in them, with errors that name the file and the next step.

The files can be anybody's: only regular files are opened, their size is bounded before they are read, and the
depth of JSON before it is parsed. Not here: the types of the values (``typed_values``).
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO, cast

from baichuan2_tpu.errors import Baichuan2Error, CheckpointError
from baichuan2_tpu.quoting import quote, shorten

__all__ = ["MOST_JSON_BYTES", "find_json", "open_regular", "parse_json", "read_bytes", "read_json"]

MOST_JSON_BYTES = 8 << 20
"""A tokenizer_config.json has 0.1 MB, the index of a 13B 0.04 MB."""
_MOST_BYTES = 64 << 20  # the largest tokenizer.json of the field has 33 MB
_MOST_DEPTH = 32
_MOST_INTEGER = (1 << 63) - 1
_DIGITS = 20
_MARKS = re.compile(r'["\[\]{}]|\\.', re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_ADVICE = "fetch the file again"


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read it; a device, which may never end, and a pipe, which may never begin, are refused.

    Raises: OSError.
    """
    # Without O_NONBLOCK a pipe that nobody writes to keeps the process waiting here.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    raise OSError("is not a regular file")


def read_bytes(
    path: Path,
    error: type[Baichuan2Error] = CheckpointError,
    advice: str = _ADVICE,
    *,
    most_bytes: int = _MOST_BYTES,
) -> bytes:
    """Return the content of a file of at most ``most_bytes``.

    Raises: ``error``, which ends with ``advice``, when it cannot be read.
    """
    try:
        with open_regular(path) as file:
            content = file.read(most_bytes + 1)
    except (OSError, ValueError) as cause:  # ValueError: a name that no file can have
        reason = (cause.strerror if isinstance(cause, OSError) else None) or cause
        raise error(f"{path}: cannot be read ({reason}); {advice}") from cause
    if len(content) > most_bytes:
        raise error(f"{path}: has more than {most_bytes} bytes, which is the most allowed; {advice}")
    return content


def read_json(
    path: Path, error: type[Baichuan2Error] = CheckpointError, advice: str = _ADVICE
) -> dict[str, object]:
    """Return the object that a JSON file holds.

    Raises: ``error``, which ends with ``advice``, when there is none that can be read.
    """
    try:
        return parse_json(read_bytes(path, error, advice, most_bytes=MOST_JSON_BYTES))
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


def parse_json(content: bytes) -> dict[str, object]:
    """Return the object that a JSON text in UTF-8 holds.

    Its numbers are finite and below 2^63, its texts are Unicode, and it is at most 32 levels deep.
    Raises: ValueError saying what it is instead, in a short line.
    """
    try:
        text = content.decode("utf-8-sig")
        _check_depth(text)
        values: object = json.loads(
            text, parse_int=_parse_integer, parse_float=_parse_float, parse_constant=_refuse_constant
        )
        if _SURROGATE.search(text):
            json.dumps(values, ensure_ascii=False).encode()
    except ValueError as error:
        raise ValueError(f"is not JSON ({shorten(str(error))})") from error
    if not isinstance(values, dict):
        raise ValueError(  # noqa: TRY004 - one fault for whoever reads a file
            f"holds a {type(values).__name__}, not a JSON object"
        )
    return cast("dict[str, object]", values)


def _check_depth(text: str) -> None:
    """Check how deep arrays and objects are nested, without building anything."""
    depth, is_text = 0, False
    for match in _MARKS.finditer(text):
        mark = match[0]
        if mark == '"':
            is_text = not is_text
        elif is_text:
            continue
        elif mark in "[{":
            depth += 1
            if depth > _MOST_DEPTH:
                raise ValueError(f"nested more than {_MOST_DEPTH} levels deep")
        elif mark in "]}":
            depth -= 1


def _parse_integer(digits: str) -> int:
    if len(digits) > _DIGITS or abs(value := int(digits)) > _MOST_INTEGER:
        raise ValueError(f"{quote(digits)} is not a number below 2^63")
    return value


def _parse_float(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{quote(digits)} is too large for a number")
    return value


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a finite number")
