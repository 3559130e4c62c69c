"""How many messages and other parts the JSON of a body may have, counted before any of it is looked at.

A body is read into objects in the event loop, which everybody's answers pass through: its size in bytes is
bounded, and here the number of things in it. Not here: how many of one field are allowed (``api.schema``).
"""

from __future__ import annotations

import json
from typing import cast

from baichuan2_tpu.server.errors import ApiError

__all__ = ["LARGE_BYTES", "check_counts"]

LARGE_BYTES = 64 * 2**10
"""A smaller body has no room for more than is allowed: an empty message takes 30 bytes."""
_MAX_MESSAGES = 4096
_MAX_OBJECTS = 16_384  # messages, parts of them, calls, nodes of schemas
_MAX_VALUES = 400_000  # most are token ids: 128 prompts of 3,000


def check_counts(body: bytes) -> None:
    """Check a body; one that is not JSON passes, for whoever reads it to refuse.

    Raises: ApiError with status 422.
    """
    try:
        content = cast("object", json.loads(body))
    except (ValueError, RecursionError):
        return
    fields = cast("dict[str, object]", content) if isinstance(content, dict) else {}
    for name in ("messages", "input"):
        messages = fields.get(name)
        if isinstance(messages, list):
            _check("messages", len(cast("list[object]", messages)), _MAX_MESSAGES, param=name)
    objects = values = 0
    unread = _containers([content])
    while unread:
        value = unread.pop()
        objects += isinstance(value, dict)
        children = list(value.values()) if isinstance(value, dict) else value
        values += len(children)
        _check("objects", objects, _MAX_OBJECTS)
        _check("values", values, _MAX_VALUES)
        unread += _containers(children)


def _containers(values: list[object]) -> list[dict[str, object] | list[object]]:
    return [
        cast("dict[str, object] | list[object]", value) for value in values if isinstance(value, (dict, list))
    ]


def _check(name: str, count: int, most: int, *, param: str | None = None) -> None:
    if count > most:
        raise ApiError(
            f"the body has more than {most} {name}; leave the oldest messages out, or send several requests",
            status=422,
            param=param,
            code="too_many_values",
        )
