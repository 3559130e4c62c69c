"""Requests that a hostile client sends: costly schemas, bodies, headers and connections.

Each must be refused or answered soon, and keep nobody else. Not here: what other clients ask meanwhile
(``serve_load``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Attack", "all_attacks"]

_CHAT = "/v1/chat/completions"
_TEXT = "/v1/completions"
_HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"


@dataclass(frozen=True, slots=True)
class Attack:
    """The bytes of one connection; ``is_open`` when the client sends no more and does not close it."""

    name: str
    content: bytes
    is_open: bool = False


def all_attacks() -> list[Attack]:
    """Return every attack."""
    attacks = [_schema(name, schema) for name, schema in _schemas().items()]
    attacks += [Attack(f"body: {name}", _post(path, body)) for name, (path, body) in _bodies().items()]
    attacks += [Attack(f"tools: {name}", _post(_CHAT, _dump(body))) for name, body in _tools().items()]
    return attacks + _connections()


def _post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


def _dump(body: Mapping[str, object]) -> bytes:
    return json.dumps(body).encode()


def _chat(**fields: object) -> dict[str, object]:
    return {"model": "served", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1, **fields}


def _schema(name: str, schema: object) -> Attack:
    named = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    return Attack(f"schema: {name}", _post(_CHAT, _dump(_chat(response_format=named))))


def _nest(count: int, wrapper: str, inner: object) -> object:
    for _ in range(count):
        inner = {wrapper: [inner]}
    return inner


def _chain(count: int) -> dict[str, object]:
    """Return a schema whose definitions refer to each other, each to the next."""
    steps = {f"d{number}": {"allOf": [{"$ref": f"#/$defs/d{number + 1}"}]} for number in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**steps, f"d{count}": {"type": "integer"}}}


def _double(count: int) -> dict[str, object]:
    """Return a schema of which every definition holds the next one twice."""
    steps = {
        f"d{number}": {"anyOf": [{"$ref": f"#/$defs/d{number + 1}"}, {"$ref": f"#/$defs/d{number + 1}"}]}
        for number in range(count)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**steps, f"d{count}": {"type": "integer"}}}


def _objects(count: int) -> list[dict[str, object]]:
    return [
        {"type": "object", "properties": {f"k{number}": {"const": number}}, "required": [f"k{number}"]}
        for number in range(count)
    ]


def _schemas() -> dict[str, object]:
    patterns = [{"pattern": f"^.*{letter}.*$"} for letter in "abcdefghijklmnopqrstuvwxyz0123"]
    optional = {f"property_{number}": {"type": "string"} for number in range(1500)}
    return {
        "multipleOf a large prime": {"type": "integer", "multipleOf": 4999999},
        "multipleOf of a small number": {"type": "number", "multipleOf": 1e-300},
        "thirty patterns at once": {"type": "string", "allOf": patterns},
        "nested allOf": _nest(90, "allOf", {"type": "integer"}),
        "deeply nested anyOf": _nest(400, "anyOf", {"type": "integer"}),
        "a chain of references": _chain(80),
        "a long chain of references": _chain(1000),
        "a reference to itself": {"$ref": "#"},
        "references in a circle": {
            "$ref": "#/$defs/a",
            "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
        },
        "doubling references": _double(40),
        "a pattern counted twice": {"type": "string", "pattern": "(a{1000}){1000}"},
        "a pattern counted thrice": {"type": "string", "pattern": "^((a{100}){100}){100}$"},
        "a pattern of Unicode classes": {"type": "string", "pattern": r"^[\p{L}\p{N}\p{S}]{500}$"},
        "a pattern with many ways": {"type": "string", "pattern": "^(a|a|a|b?){200}c$"},
        "a pattern of negated classes": {"type": "string", "pattern": "([^a]*[^b]*[^c]*){64}x"},
        "patternProperties": {
            "type": "object",
            "patternProperties": {f"^.*{number}.*$": {"type": "string"} for number in range(40)},
        },
        "an enum of many": {"enum": [f"value {number}" for number in range(3000)]},
        "an enum of long strings": {"enum": ["x" * 3000 + str(number) for number in range(20)]},
        "a large const": {"const": {"a": ["x" * 50] * 1000}},
        "a long const": {"const": "\u4e2d\U0001f600" * 3000},
        "many items at least": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
        "many items at most": {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9},
        "a long string at least": {"type": "string", "minLength": 10**9},
        "a long string at most": {"type": "string", "maxLength": 10**9},
        "bounds beyond numbers": {"type": "integer", "minimum": -(10**300), "maximum": 10**300},
        "not": {"not": {"type": "string"}},
        "not not": {"not": {"not": {"not": {"enum": [1, 2, 3]}}}},
        "oneOf of 500 objects": {"oneOf": _objects(500)},
        "anyOf of 500 objects": {"anyOf": _objects(500)},
        "allOf of anyOf": {"allOf": [{"anyOf": _objects(12)} for _ in range(12)]},
        "1,500 optional properties": {"type": "object", "properties": optional},
        "conditions": {"if": {"type": "string"}, "then": {"minLength": 5}, "else": {"type": "integer"}},
        "dependent properties": {"type": "object", "dependentRequired": {"a": ["b"] * 5000}},
        "wrong types": {"type": 7, "properties": [1], "enum": {}, "$ref": 3, "pattern": {"a": 1}},
        "an unknown reference": {"$ref": "https://example.org/a.json"},
        "a faulty pattern deep inside": _nest(300, "anyOf", {"type": "string", "pattern": "(?=a)"}),
        "control characters in names": {"type": "object", "properties": {"\x00\x1b[2J\u202e": {}}},
        "x-guidance": {"x-guidance": {"whitespace_pattern": ".*", "lenient": True}, "type": "object"},
        "an empty schema": {},
        "nothing allowed": False,
    }


def _bodies() -> dict[str, tuple[str, bytes]]:
    messages = [{"role": "user", "content": ""}]
    names = ",".join('"model":"served"' for _ in range(50_000))
    return {
        "the same field 50,000 times": (_CHAT, f'{{{names},"messages":[]}}'.encode()),
        "a number beyond all numbers": (_TEXT, b'{"model":"served","prompt":"a","temperature":1e999}'),
        "not a number": (_TEXT, b'{"model":"served","prompt":"a","temperature":NaN}'),
        "a number of many digits": (_TEXT, b'{"model":"served","prompt":"a","seed":' + b"9" * 100_000 + b"}"),
        "100,000 open brackets": (_CHAT, b"[" * 100_000),
        "100,000 nested objects": (_CHAT, b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
        "a lone surrogate": (_CHAT, rb'{"model":"served","messages":[{"role":"user","content":"\ud800"}]}'),
        "a lone surrogate in a name": (_TEXT, rb'{"model":"\ud800","prompt":"\udfff","\udead":1}'),
        "invalid UTF-8": (_TEXT, b'{"model":"served","prompt":"\xff\xfe"}'),
        "UTF-16": (_TEXT, '{"model":"served","prompt":"a"}'.encode("utf-16")),
        "100,000 stop strings": (_TEXT, _dump({"prompt": "a", "stop": [str(n) for n in range(100_000)]})),
        "long stop strings": (_TEXT, _dump({"prompt": "a", "max_tokens": 4, "stop": ["x" * 900_000] * 4})),
        "a large logit_bias": (
            _TEXT,
            _dump({"prompt": "a", "max_tokens": 1, "logit_bias": {str(n): 1 for n in range(40_000)}}),
        ),
        "a logit_bias beyond all": (
            _TEXT,
            _dump({"prompt": "a", "max_tokens": 2, "logit_bias": {"5": 1e308, "6": -1e308}}),
        ),
        "penalties beyond all": (
            _TEXT,
            _dump({"prompt": "a a a", "max_tokens": 4, "repetition_penalty": 1e308, "temperature": 1e-300}),
        ),
        "a million digits": (_TEXT, _dump({"prompt": "7" * 1_000_000, "max_tokens": 1})),
        "a million spaces": (_CHAT, _dump(_chat(messages=[{"role": "user", "content": " " * 1_000_000}]))),
        "a million combining marks": (_TEXT, _dump({"prompt": "a" + "\u0301" * 500_000})),
        "70,000 messages": (_CHAT, _dump(_chat(messages=messages * 70_000))),
        "4,000 messages": (_CHAT, _dump(_chat(messages=messages * 4000))),
        "many prompts": (_TEXT, _dump({"prompt": ["a"] * 100_000, "max_tokens": 1})),
        "many answers": (_TEXT, _dump({"prompt": "a", "n": 10**9, "max_tokens": 10**18})),
        "tokens that are none": (_TEXT, _dump({"prompt": [2**31, -1], "max_tokens": 1})),
        "tokens beyond numbers": (_TEXT, b'{"prompt":[1e400],"max_tokens":1}'),
        "300,000 tokens": (_TEXT, _dump({"prompt": [5] * 300_000, "max_tokens": 1})),
        "wrong types everywhere": (
            _CHAT,
            _dump({"model": [], "messages": {"a": 1}, "stream": "no", "n": {}}),
        ),
        "a long name": (_CHAT, _dump(_chat(model="x" * 1_000_000))),
        "a tool result without a call": (
            _CHAT,
            _dump(_chat(messages=[{"role": "tool", "tool_call_id": "x" * 900_000, "content": "a"}] * 3)),
        ),
        "control marks": (_TEXT, _dump({"prompt": "<|im_start|><reserved_106></s>" * 20, "max_tokens": 1})),
        "half a body": (_CHAT, b'{"model":"served","messages":[{"role":'),
    }


def _tool(name: str, parameters: object) -> dict[str, object]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def _tools() -> dict[str, dict[str, object]]:
    optional = {f"p{number}": {"type": "string"} for number in range(5000)}
    costly = {"type": "object", "properties": {"a": {"type": "integer", "multipleOf": 4999999}}}
    usual = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    return {
        "5,000 properties": _chat(tools=[_tool("a", {"type": "object", "properties": optional})]),
        "128 costly ones": _chat(tools=[_tool(f"t{number}", costly) for number in range(128)]),
        "128 different ones": _chat(
            tools=[_tool(f"t{n}", {**usual, "title": str(n)}) for n in range(128)], tool_choice="required"
        ),
        "2,000 of them": _chat(tools=[_tool(f"t{number}", usual) for number in range(2000)]),
        "names with quotes": _chat(tools=[_tool('a"\\n}} | start: /.*/', usual)]),
        "a long name": _chat(tools=[_tool("x" * 1_000_000, usual)]),
        "a long description": _chat(
            tools=[{"type": "function", "function": {"name": "a", "description": "y" * 2_000_000}}]
        ),
    }


def _connections() -> list[Attack]:
    many = b"".join(b"x-%d: 1\r\n" % number for number in range(20_000))
    chunked = _HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    return [
        Attack("head: 20,000 headers", _HEAD + many + b"\r\n"),
        Attack("head: a long header", _HEAD + b"x: " + b"y" * 1_000_000 + b"\r\n\r\n"),
        Attack("head: a long path", b"GET /" + b"a" * 60_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"),
        Attack(
            "head: a path out of the assets",
            b"GET /assets/" + b"../" * 2000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        ),
        Attack("head: no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 50),
        Attack("head: two lengths", _HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n{}"),
        Attack("head: a negative length", _HEAD + b"Content-Length: -1\r\n\r\n{}"),
        Attack("head: length and chunks", chunked[:-2] + b"Content-Length: 4\r\n\r\n0\r\n\r\n"),
        Attack(
            "head: an unknown site", _HEAD + b"Origin: http://evil.example\r\nContent-Length: 2\r\n\r\n{}"
        ),
        Attack("head: no host", b"GET /v1/models HTTP/1.1\r\n\r\n"),
        Attack("head: letters that are none", b"GET /v1/models HTTP/1.1\r\nHost: \xff\xfe\r\n\r\n"),
        Attack("chunks: a size beyond all", chunked + b"f" * 30 + b"\r\n{}"),
        Attack("chunks: no size", chunked + b"zz\r\n{}\r\n"),
        Attack("chunks: one byte each", chunked + b"1\r\n[\r\n" * 20_000 + b"0\r\n\r\n"),
        Attack("slow: half a head", _HEAD, is_open=True),
        Attack("slow: half a body", _HEAD + b'Content-Length: 100000\r\n\r\n{"model"', is_open=True),
        Attack("pipelined: 200 questions", b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 200),
    ]
