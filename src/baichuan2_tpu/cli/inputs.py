"""Text that a user gives in a file or on standard input.

Not here: what is done with it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from baichuan2_tpu.errors import RequestError

__all__ = ["read_text"]


def read_text(path: Path) -> str:
    """Return a file's text; - is standard input.

    Raises: RequestError when it cannot be read, or is not UTF-8.
    """
    if str(path) == "-":
        return _decoded(sys.stdin.buffer.read(), "standard input")
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise RequestError(f"cannot read {path}: {error.strerror}; name a text file") from error


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 at byte {error.start}; convert it first") from error
