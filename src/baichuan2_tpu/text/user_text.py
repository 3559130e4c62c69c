"""Text that a user gives in a file or on standard input.

Not here: the files of a checkpoint (``files``).
"""

from __future__ import annotations

import sys
from pathlib import Path

from baichuan2_tpu.errors import RequestError

__all__ = ["read_user_text", "user_text_name"]


def read_user_text(path: Path) -> str:
    """Return a file's text without a byte order mark; - is standard input.

    Raises: RequestError when it cannot be read, or is not UTF-8.
    """
    name = user_text_name(path)
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        # Editors on Windows put the mark in front; it is not part of the text.
        return content.decode("utf-8-sig")
    except OSError as error:
        raise RequestError(f"cannot read {name}: {error.strerror}; name a text file") from error
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8 at byte {error.start}; convert it first") from error


def user_text_name(path: Path) -> str:
    """Return what a reader calls the text."""
    return "standard input" if str(path) == "-" else str(path)
