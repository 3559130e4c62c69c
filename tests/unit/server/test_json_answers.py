"""An answer asked for as JSON is JSON, whatever the model would rather say."""

import json

import pytest

from doubles.fakes import ByteTokenizer, HistoryEngine
from running.served import chat_body, scripted_engine, served

CHAT = "/v1/chat/completions"

YES_OR_NO = {
    "type": "object",
    "properties": {"answer": {"enum": ["yes", "no"]}},
    "required": ["answer"],
    "additionalProperties": False,
}


def schema_format(schema: dict[str, object] | None) -> dict[str, object]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}}


@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_follows_its_schema_and_ends_by_itself(is_stream: bool) -> None:
    engine = scripted_engine("I would rather not answer this question. " * 4)
    body = chat_body(response_format=schema_format(YES_OR_NO), stream=is_stream, max_tokens=150)
    with served(engine) as client:
        response = client.post(CHAT, json=body)
    if is_stream:
        chunks = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n")[:-2]]
        choices = [chunk["choices"][0] for chunk in chunks]
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        reason = choices[-1]["finish_reason"]
    else:
        (choice,) = response.json()["choices"]
        text, reason = choice["message"]["content"], choice["finish_reason"]
    assert json.loads(text)["answer"] in ("yes", "no")
    assert reason == "stop"


@pytest.mark.parametrize("asked", [{"type": "json_object"}, schema_format(None)])
def test_an_object_without_schema_may_be_any(asked: dict[str, object]) -> None:
    with served(scripted_engine('{"天气": [1, 2]}')) as client:
        (choice,) = client.post(CHAT, json=chat_body(response_format=asked)).json()["choices"]
    assert choice["message"]["content"] == '{"天气": [1, 2]}'


def test_every_answer_follows_the_schema() -> None:
    engine = HistoryEngine(ByteTokenizer().vocabulary_size, max_context=256)
    body = chat_body(response_format=schema_format(YES_OR_NO), n=3, temperature=1, max_tokens=64)
    with served(engine) as client:
        choices = client.post(CHAT, json=body).json()["choices"]
    assert all(json.loads(choice["message"]["content"])["answer"] in ("yes", "no") for choice in choices)


def test_text_is_free() -> None:
    with served(scripted_engine("hello")) as client:
        (choice,) = client.post(CHAT, json=chat_body(response_format={"type": "text"})).json()["choices"]
    assert choice["message"]["content"] == "hello"


def test_a_schema_that_cannot_be_enforced_is_refused_by_name() -> None:
    body = chat_body(response_format=schema_format({"type": "array", "uniqueItems": True}))
    with served(scripted_engine()) as client:
        response = client.post(CHAT, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "response_format")
    assert error["code"] == "invalid_json_schema"
    assert "uniqueItems" in error["message"]
