"""What is wrong with a request, in sentences for people: the field, the value seen, the values allowed.

pydantic reports a fault per member of a union and names its own types; here each place is reported once.
Not here: statuses and error objects (``errors``).
Source: the types of errors in pydantic's documentation, "Validation Errors".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import cast

from baichuan2_tpu.quoting import escape_controls, shorten

__all__ = ["Place", "explain_faults"]

Place = tuple[str | int, ...]
PydanticFault = Mapping[str, object]

_MAX_SHOWN = 3
_MAX_VALUE = 60  # characters of a value that are quoted

# What a value has to be, by the type of pydantic's error up to its first underscore.
_NEEDED = {
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "dict": "an object",
    "model": "an object",
}
_BOUNDS = {
    "greater_than_equal": ("ge", "{} or more is allowed"),
    "greater_than": ("gt", "more than {} is allowed"),
    "less_than_equal": ("le", "{} or less is allowed"),
    "less_than": ("lt", "less than {} is allowed"),
    "too_short": ("min_length", "{} or more entries are needed"),
    "too_long": ("max_length", "at most {} entries are allowed"),
    "string_too_long": ("max_length", "at most {} characters are allowed"),
    "string_pattern_mismatch": ("pattern", "it has to match {}"),
    "literal_error": ("expected", "{} is allowed"),
    "union_tag_invalid": ("expected_tags", "{} is allowed"),
}
_SIZES = _BOUNDS.keys() - {"literal_error", "union_tag_invalid"}


def explain_faults(faults: Sequence[PydanticFault], body: object) -> tuple[str, Place]:
    """Return a sentence or a few, and the place of the first fault in the body."""
    by_place: dict[Place, list[PydanticFault]] = {}
    for fault in faults:
        by_place.setdefault(_place(fault, body), []).append(fault)
    # A fault inside a value says more than that the value is of another type as well.
    inner = [place for place in by_place if not any(_is_inside(other, place) for other in by_place)]
    sentences = [_explain(place, by_place[place]) for place in inner[:_MAX_SHOWN]]
    return "; ".join(sentences), inner[0]


def _is_inside(place: Place, outer: Place) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _place(fault: PydanticFault, body: object) -> Place:
    """Return the path to a fault through the body, without pydantic's names of types."""
    location = cast("Sequence[str | int]", fault["loc"])
    last = len(location) - 1 if fault["type"] == "missing" else len(location)
    place: list[str | int] = []
    value = body
    for index, part in enumerate(location):
        if isinstance(part, int) and isinstance(value, list):
            items = cast("list[object]", value)
            value = items[part] if part < len(items) else None
        elif isinstance(part, str) and isinstance(value, dict):
            fields = cast("dict[str, object]", value)
            if part not in fields and index < last:
                continue  # the name of a member of a union
            value = fields.get(part)
        else:
            continue
        place.append(part)
    return tuple(place)


def _explain(place: Place, faults: Sequence[PydanticFault]) -> str:
    name = _name(place)
    kind = str(faults[0]["type"])
    if kind == "missing":
        return f"{name} is missing"
    if kind == "extra_forbidden":
        return f"{name} is not a field that is known here; leave it out"
    if kind in ("value_error", "assertion_error"):
        return f"{name}: {str(faults[0]['msg']).partition(', ')[2]}"
    if kind in ("text_only", "functions_only"):
        return f"{name} {faults[0]['msg']}"
    if kind == "union_tag_not_found":
        return f"{name} has no {_discriminator(faults[0])}"
    # A value of the right type and the wrong size need not hear of other types.
    sized = [fault for fault in faults if fault["type"] in _SIZES] or faults
    needed = dict.fromkeys(_NEEDED[word] for fault in sized if (word := _word(fault)) in _NEEDED)
    allowed = [f"{' or '.join(needed)} is needed"] if needed else []
    allowed += dict.fromkeys(_allowed(fault) for fault in sized if _word(fault) not in _NEEDED)
    value = _tag(faults[0]) if kind == "union_tag_invalid" else _quote(faults[0].get("input"))
    return f"{name} is {value}; {' or '.join(allowed)}"


def _name(place: Place) -> str:
    """Return the name of a place, parts of which a client may have made up."""
    name = shorten(escape_controls(".".join(map(str, place)))).replace("\n", r"\n")
    return name or "the body"


def _allowed(fault: PydanticFault) -> str:
    kind = str(fault["type"])
    if kind in _BOUNDS:
        key, sentence = _BOUNDS[kind]
        context = cast("Mapping[str, object]", fault.get("ctx") or {})
        return sentence.format(context.get(key))
    message = str(fault["msg"])
    return message[:1].lower() + message[1:]


def _word(fault: PydanticFault) -> str:
    """Return the word of a fault that is about a type; empty for others."""
    kind = str(fault["type"])
    return "" if kind in _BOUNDS else kind.partition("_")[0]


def _tag(fault: PydanticFault) -> str:
    context = cast("Mapping[str, object]", fault.get("ctx") or {})
    return f"of the kind {str(context.get('tag'))[:_MAX_VALUE]!r}"


def _discriminator(fault: PydanticFault) -> str:
    """Return the field that tells which kind of value it is, and what is allowed there where all know it."""
    field = str(cast("Mapping[str, object]", fault.get("ctx") or {}).get("discriminator")).strip("'")
    needed = "'system', 'user', 'assistant' or 'tool'" if field == "role" else "one"
    return f"{field}; {needed} is needed"


def _quote(value: object) -> str:
    """Return a value as it stands in JSON, or what kind of value it is where it is long."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(cast('list[object]', value))}"
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        return "no JSON value"
    return text if len(text) <= _MAX_VALUE else f"{text[:_MAX_VALUE]}…"
