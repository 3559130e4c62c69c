"""Values of strangers in messages: cut to a readable length, without control characters.

Not here: the messages, which are written where they are raised.
"""

from __future__ import annotations

import reprlib

__all__ = ["escape_controls", "quote", "shorten"]

_CHARACTERS = 80


def escape_controls(text: str) -> str:
    """Return a text with its control characters written as escapes; line breaks stay.

    A terminal obeys some of them, and a log takes one line for two.
    """
    characters = (c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return text if text.isprintable() else "".join(characters)


def shorten(text: str, characters: int = _CHARACTERS) -> str:
    """Return a text of at most ``characters``; the middle of a longer one is replaced by its length."""
    if len(text) <= characters:
        return text
    kept = max(characters // 2 - 12, 1)
    return f"{text[:kept]}… {len(text)} characters …{text[-kept:]}"


def quote(value: object, characters: int = _CHARACTERS) -> str:
    """Return a plain value as Python writes it, shortened before it is written: it may have any length.

    Of lists and objects the first few values are written, two levels deep.
    """
    if isinstance(value, str | bytes) and len(value) > characters:
        head, tail = value[: characters // 2 - 12], value[-(characters // 2 - 12) :]
        return f"{head!r}… {len(value)} characters …{tail!r}"
    if isinstance(value, str | bytes):
        return shorten(repr(value), characters)
    try:
        return shorten(_SHORT.repr(value), characters)
    except ValueError:  # an integer of more digits than Python writes
        return "a number of thousands of digits"


def _make_short() -> reprlib.Repr:
    """Return what writes the beginning of nested values."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxstring = 2, 6, 4, 40
    return short


_SHORT = _make_short()
