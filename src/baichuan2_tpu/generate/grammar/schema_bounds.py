"""How large and how deep a stranger's JSON schema may be, checked before anything is compiled.

Also, for a schema that took too much work to compile, what in it is the likely cause.
Not here: compiling (``grammars``), the limits while compiling (``trial``).
Source: JSON Schema 2020-12; references are JSON pointers (RFC 6901) behind a ``#``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import cast
from urllib.parse import unquote

from baichuan2_tpu.errors import TooCostly

__all__ = ["check_schema", "likely_cause"]

# To compile takes the square of the number of optional properties: 12 s for 5,000 of them, 150 KB.
_MAX_CHARACTERS = 65_536
# Every level takes stack of the compiler, which ends the process when it overflows, at some 3,000 levels. A
# schema as people write them has below 30.
_MAX_LEVELS = 100

_LARGE = {"multipleOf": 1000, "maxLength": 10_000, "minLength": 1000, "maxItems": 10_000, "minItems": 1000}
"""From which value on a keyword is worth naming as a cause."""
_COMBINING = ("allOf", "anyOf", "oneOf")


def check_schema(schema: Mapping[str, object]) -> None:
    """Check that a schema is small and shallow enough to be given to a compiler.

    Raises: TooCostly with the value seen and the value allowed.
    """
    levels = _levels(schema)
    if levels > _MAX_LEVELS:
        raise TooCostly(
            f"the schema is nested {levels} levels deep, references included; {_MAX_LEVELS} are allowed"
        )
    size = len(json.dumps(schema))
    if size > _MAX_CHARACTERS:
        raise TooCostly(f"the schema has {size} characters as JSON; {_MAX_CHARACTERS} are allowed")


def likely_cause(schema: Mapping[str, object]) -> str:
    """Name what most likely makes a schema costly, with its place: a large bound, or combined patterns."""
    bounds: list[tuple[float, str]] = []
    combined = ""
    for place, node in _objects(schema):
        for keyword, least in _LARGE.items():
            value = node.get(keyword)
            if isinstance(value, int | float) and value >= least:
                bounds.append((value / least, f"{keyword} {value} at {place}"))
        for keyword in _COMBINING:
            parts = node.get(keyword)
            if isinstance(parts, list) and len(cast("list[object]", parts)) > 1 and not combined:
                combined = f"{keyword} of {len(cast('list[object]', parts))} schemas at {place}"
    if combined and not bounds:
        return combined
    return max(bounds)[1] if bounds else "its patterns, or how its parts refer to each other"


def _levels(schema: Mapping[str, object]) -> int:
    """Count the levels of the deepest place, following references; one that leads into itself ends there.

    Without recursion: a stranger chooses the depth.
    """
    levels: dict[int, int] = {id(schema): 0}  # 0 while a node is being walked
    stack: list[tuple[object, Iterator[object]]] = [(schema, _children(schema, schema))]
    while True:
        node, children = stack[-1]
        child = next((child for child in children if id(child) not in levels), None)
        if child is not None:
            levels[id(child)] = 0
            stack.append((child, _children(child, schema)))
            continue
        deepest = max((levels[id(child)] for child in _children(node, schema)), default=0)
        levels[id(node)] = deepest + 1
        stack.pop()
        if not stack:
            return deepest + 1


def _children(node: object, root: Mapping[str, object]) -> Iterator[object]:
    """Yield the objects and lists inside a node, and the one it refers to."""
    if isinstance(node, Mapping):
        mapping = cast("Mapping[str, object]", node)
        yield from (value for value in mapping.values() if isinstance(value, Mapping | list))
        reference = mapping.get("$ref")
        if isinstance(reference, str) and isinstance(target := _target(reference, root), Mapping | list):
            yield cast("object", target)
    elif isinstance(node, list):
        yield from (value for value in cast("list[object]", node) if isinstance(value, Mapping | list))


def _target(reference: str, root: Mapping[str, object]) -> object:
    """Return what a reference within the schema names; None where there is nothing."""
    head, _, pointer = reference.partition("#")
    if head:
        return None
    node: object = root
    for part in unquote(pointer).split("/")[1:]:
        node = _member(node, part.replace("~1", "/").replace("~0", "~"))
    return node


def _member(node: object, name: str) -> object:
    if isinstance(node, Mapping):
        return cast("Mapping[str, object]", node).get(name)
    if isinstance(node, list) and name.isdecimal() and len(name) < 7:
        items = cast("list[object]", node)
        return items[int(name)] if int(name) < len(items) else None
    return None


def _objects(schema: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yield every object of a schema with its place, written as a reference."""
    pending: list[tuple[str, object]] = [("#", schema)]
    while pending:
        place, node = pending.pop()
        if isinstance(node, Mapping):
            mapping = cast("Mapping[str, object]", node)
            yield place, mapping
            pending += [(f"{place}/{name}", value) for name, value in mapping.items()]
        elif isinstance(node, list):
            pending += [(f"{place}/{index}", value) for index, value in enumerate(cast("list[object]", node))]
