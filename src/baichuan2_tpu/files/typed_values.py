"""Values of JSON as dataclasses: every key is there, and of the type that the class says.

Not here: JSON itself (``reading``); a model's own config, whose keys are others' (``config``).
"""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import PurePath
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from baichuan2_tpu.quoting import quote

__all__ = ["check_plain_name", "read_values"]

_Class = TypeVar("_Class")
_Reader = Callable[[object], object]
_NO_READERS: Mapping[type, _Reader] = {}
_MOST_NAME_BYTES = 255  # of a file, on Linux


def read_values(kind: type[_Class], values: object, readers: Mapping[type, _Reader] = _NO_READERS) -> _Class:
    """Return a dataclass with those values, which have the names and types of its fields, and no others.

    Fields can be texts, numbers from 0 on, booleans, ``Literal``, a dataclass, a ``tuple`` of any length,
    a ``Mapping`` from texts, and any of them or None; what is in ``readers`` is read by those.
    Raises: ValueError naming the key, the value and what is allowed; what a reader raises.
    """
    return _Values(readers).read_class(kind, values, "")


def check_plain_name(name: str) -> None:
    """Check that a name is one of a file in a folder, and leads nowhere else.

    Raises: ValueError.
    """
    is_plain = PurePath(name).name == name and name not in ("", "..") and name.isprintable()
    if not is_plain or len(name.encode("utf-8", "replace")) > _MOST_NAME_BYTES:
        raise ValueError(f"{quote(name)} is not a plain file name")


class _Values:
    """Reads values by the types of a dataclass; ``readers`` are for types with keys of their own."""

    def __init__(self, readers: Mapping[type, _Reader]) -> None:
        self._readers = readers

    def read_class(self, kind: type[_Class], values: object, where: str) -> _Class:
        items = _object(values, where)
        hints = get_type_hints(kind)
        names = [field.name for field in fields(cast("Any", kind))]
        differing = sorted(set(names) ^ items.keys())
        if differing:
            place = f" in {where}" if where else ""
            state = "missing" if differing[0] in names else "unknown"
            raise ValueError(f"the key {quote(differing[0])}{place} is {state}")
        return kind(
            **{name: self._read(hints[name], items[name], f"{where}.{name}".lstrip(".")) for name in names}
        )

    def _read(self, hint: object, value: object, where: str) -> object:
        """Return the value as the type that ``hint`` says."""
        if get_origin(hint) is not None:
            return self._read_generic(get_origin(hint), get_args(hint), value, where)
        kind = cast("type[object]", hint)
        if kind in _PLAIN:
            return _plain(kind, value, where)
        if kind in self._readers:
            return self._readers[kind](value)
        return self.read_class(kind, value, where)

    def _read_generic(
        self, origin: object, arguments: tuple[object, ...], value: object, where: str
    ) -> object:
        if origin is Literal:
            return _choice(arguments, value, where)
        if origin is tuple:
            return tuple(self._read(arguments[0], item, where) for item in _list(value, where))
        if origin is Union or origin is types.UnionType:
            (kind,) = (argument for argument in arguments if argument is not type(None))
            return None if value is None else self._read(kind, value, where)
        items = _object(value, where).items()
        return {name: self._read(arguments[1], item, f"{where}.{quote(name, 40)}") for name, item in items}


_PLAIN: Mapping[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number from 0 on",
    float: "a number from 0 on",
    object: "",
}


def _choice(choices: tuple[object, ...], value: object, where: str) -> object:
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise _wrong(where, value, " or ".join(repr(choice) for choice in choices))
    return value


def _plain(kind: type, value: object, where: str) -> object:
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value >= 0
    is_right = {
        str: isinstance(value, str),
        bool: isinstance(value, bool),
        int: is_number and isinstance(value, int),
        float: is_number,
        object: True,
    }
    if not is_right[kind]:
        raise _wrong(where, value, _PLAIN[kind])
    return value


def _list(value: object, where: str) -> list[object]:
    if not isinstance(value, list):
        raise _wrong(where, value, "a list")
    return cast("list[object]", value)


def _object(value: object, where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise _wrong(where or "it", value, "an object")
    return cast("dict[str, object]", value)


def _wrong(where: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"{where} is {quote(value)}, allowed is {allowed}")
