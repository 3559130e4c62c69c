"""Damage of files: bytes that are changed anywhere, and values of JSON that no program writes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["mutate"]

_EXTREMES = (
    0,
    1,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 60,
    (1 << 63) - 1,
    (1 << 64) - 1,
)

_DEEP = "arrays in arrays"
_DEEP_JSON = b"[" * 100_000 + b"]" * 100_000
"""Written in place of that text: Python itself could not."""

_VALUES: tuple[Callable[[], object], ...] = (
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 0,
    lambda: 10**9,
    lambda: 1 << 62,
    lambda: 10**400,
    lambda: 1e308,
    lambda: float("inf"),
    lambda: float("nan"),
    lambda: 0.5,
    lambda: "",
    lambda: "/etc/passwd",
    lambda: "../../etc/passwd",
    lambda: "/dev/zero",
    lambda: "x" * 100_000,
    lambda: "\x00\x1b[2J\n",
    lambda: "\ud800",
    list,
    dict,
    lambda: [[]] * 1000,
    lambda: {"a": {"b": [1, "c", None]}},
    lambda: _DEEP,
)


def mutate(content: bytes, random_source: random.Random) -> bytes:
    """Return a damaged copy; what is JSON is damaged as JSON half of the time."""
    damage = _damage_json if random_source.random() < 0.5 else _damage_bytes
    return damage(content, random_source) or _damage_bytes(content, random_source)


def _damage_json(content: bytes, random_source: random.Random) -> bytes:
    """Return JSON with one value, name or entry changed; nothing for what is no JSON."""
    start = 8 if content[8:9] == b"{" else 0  # behind the length of a safetensors header
    try:
        value, end = json.JSONDecoder().raw_decode(content[start:].decode("utf-8", "surrogateescape"))
    except (ValueError, RecursionError):
        return b""
    for _ in range(random_source.randint(1, 3)):
        value = _change(value, random_source)
    written = json.dumps(value).encode("utf-8", "surrogatepass").replace(f'"{_DEEP}"'.encode(), _DEEP_JSON)
    if not start:
        return written
    return len(written).to_bytes(8, "little") + written + content[start + end :]


def _change(value: Any, random_source: random.Random) -> Any:
    places = list(_places(value))
    if not places:
        return random_source.choice(_VALUES)()
    container, key = random_source.choice(places)
    match random_source.randrange(4):
        case 0 if isinstance(container, dict):
            container[str(random_source.choice(_VALUES)())[:200]] = container.pop(key)
        case 1:
            del container[key]
        case _:
            container[key] = random_source.choice(_VALUES)()
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _damage_bytes(content: bytes, random_source: random.Random) -> bytes:
    damaged = bytearray(content)
    for _ in range(random_source.choice((1, 1, 1, 2, 4, 16))):
        place = random_source.randrange(len(damaged) + 1)
        if random_source.random() < 0.5:
            place = min(place, random_source.randrange(256))  # where the counts and lengths are
        match random_source.randrange(6):
            case 0:
                damaged[place : place + 1] = bytes([random_source.randrange(256)])
            case 1:
                size = random_source.choice((1, 2, 4, 8))
                extreme = random_source.choice(_EXTREMES) & ((1 << 8 * size) - 1)
                damaged[place : place + size] = extreme.to_bytes(size, "little")
            case 2:
                del damaged[place:]
            case 3:
                del damaged[place : place + random_source.randrange(64)]
            case 4:
                other = random_source.randrange(len(damaged) + 1)
                damaged[place:place] = damaged[other : other + random_source.randrange(64)]
            case _:
                damaged[place:place] = bytes(random_source.randrange(64))
    return bytes(damaged)
