"""What is told about a wrong request: the field, the value seen and the values allowed, in words."""

import json
from typing import Any

import pytest

from running.served import chat_body, scripted_engine, served

CHAT = "/v1/chat/completions"


def message(path: str = CHAT, content: bytes | None = None, **fields: Any) -> str:
    with served(scripted_engine("a")) as client:
        if content is None:
            response = client.post(path, json=chat_body(**fields))
        else:
            response = client.post(path, content=content)
    assert response.status_code in (400, 422)
    return response.json()["error"]["message"]


def part(**fields: object) -> list[dict[str, object]]:
    return [{"role": "user", "content": [{"type": "text", "text": "a"}, fields]}]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"temperature": "hot"}, 'temperature is "hot"; a number is needed'),
        ({"temperature": 3}, "temperature is 3; 2.0 or less is allowed"),
        ({"max_tokens": 0}, "max_tokens is 0; 1 or more is allowed, or -1 for no limit"),
        ({"max_tokens": 1.5}, "max_tokens is 1.5; a whole number is needed"),
        ({"max_tokens": True}, "max_tokens is true; a whole number is needed"),
        ({"stop": 5}, "stop is 5; text or a list is needed"),
        ({"stop": ["x"] * 17}, "stop is a list of 17; at most 16 entries are allowed"),
        ({"messages": []}, "messages is a list of 0; 1 or more entries are needed"),
        (
            {"messages": [{"content": "a"}]},
            "messages.0 has no role; 'system', 'user', 'assistant' or 'tool' is needed",
        ),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content is 5; text or a list is needed",
        ),
        (
            {"messages": part(type="image_url", image_url={"url": "data:"})},
            "messages.0.content.1.type is 'image_url'; this model reads text only",
        ),
        (
            {"messages": part(type="input_audio", input_audio={})},
            "messages.0.content.1.type is 'input_audio'; this model reads text only",
        ),
        ({"tools": [{"type": "function"}]}, "tools.0.function is missing"),
        ({"response_format": {}}, "response_format has no type; one is needed"),
        (
            {"response_format": {"type": "xml"}},
            "response_format is of the kind 'xml'; 'text', 'json_object', 'json_schema' is allowed",
        ),
    ],
)
def test_a_wrong_field_is_told_in_one_sentence(fields: dict[str, Any], sentence: str) -> None:
    assert message(**fields) == sentence


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": [{"role": "narrator", "content": "a"}]},
        {"messages": [{"role": "user", "content": [5]}]},
        {"tool_choice": 5},
        {"tool_choice": {"type": "function"}},
        {"logit_bias": {"5": "x"}},
        {"messages": "hi"},
    ],
)
def test_no_message_has_the_names_of_types_or_unions(fields: dict[str, Any]) -> None:
    text = message(**fields)
    assert not any(mark in text for mark in ("[", "{", "Input", "str.", "function-", "Literal")), text


def test_a_body_that_is_not_json_is_told_without_a_dictionary() -> None:
    # It was: the body is not JSON: {'error': 'Expecting value'}
    text = message(content=b'{"model": ')
    assert text.startswith("the body is not JSON: ")
    assert "{" not in text


def test_a_fault_of_a_schema_quotes_the_pattern_and_its_place() -> None:
    pattern = r"^(?!x)\d+$"
    schema = {"type": "object", "properties": {"a": {"anyOf": [{"type": "string", "pattern": pattern}]}}}
    answer = {"type": "json_schema", "json_schema": {"name": "t", "schema": schema}}
    text = message(response_format=answer)
    assert text.startswith(f'the pattern "{pattern}" of properties.a.anyOf.0 is not supported; ')


def test_a_name_that_a_client_made_up_is_short_and_holds_no_control_characters() -> None:
    # It was quoted as it came, with escape sequences for the terminal of whoever reads the error.
    name = "\x00\x1b[2J\n" + "x" * 10_000
    told = message("/detokenize", json.dumps({"tokens": [1], name: 1}).encode())
    assert told.startswith(r"\x00\x1b[2J\n")
    assert told.isprintable()
    assert len(told) < 200
