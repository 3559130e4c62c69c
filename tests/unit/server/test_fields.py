"""Fields that are not declared: ignored by name, refused with a reason, or refused all by a strict server."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient

from baichuan2_tpu.server.api.fields import IGNORED, REFUSED, REFUSED_OF_RESPONSES, IgnoredFields
from baichuan2_tpu.server.api.responses.schema import ResponseRequest
from baichuan2_tpu.server.api.schema_chat import ChatRequest
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.service import RequestRules
from running.served import chat_body, running_service, scripted_engine, served

CHAT = "/v1/chat/completions"
ECHOED = {
    "role": "assistant",
    "content": "b",
    "index": 0,
    "refusal": None,
    "audio": None,
    "parsed": {"a": 1},
    "tool_calls": [],
}


def check(fields: dict[str, Any], *, is_strict: bool = False) -> list[str]:
    return IgnoredFields(is_strict=is_strict).check(ChatRequest.model_validate(chat_body(**fields)))


def test_ignored_fields_are_named_with_their_place() -> None:
    part = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": [part, part]}, ECHOED, {"role": "user", "content": "c", "id": 7}]
    assert check({"messages": messages, "keep_alive": -1, "bad_ümlaut": 1}) == [
        "keep_alive",
        "?",
        "messages.content.cache_control",
        "messages.index",
        "messages.parsed",
        "messages.id",
    ]


@pytest.mark.parametrize("name", IGNORED)
def test_fields_that_clients_are_known_to_send_are_ignored(name: str) -> None:
    assert check({name: {"a": 1}}) == [name]


@pytest.mark.parametrize("name", [name for name in REFUSED if name not in ChatRequest.model_fields])
def test_a_field_whose_wish_cannot_be_granted_is_refused_unless_it_is_empty(name: str) -> None:
    with pytest.raises(ApiError, match=rf"^{name}: ") as caught:
        check({name: ["a"]})
    assert (caught.value.status, caught.value.param) == (400, name)
    assert check({name: None}) == check({name: []}) == []


@pytest.mark.parametrize("fields", [{"tools": [{}]}, {"response_format": {"type": "json_object"}}])
def test_a_completion_is_not_held_to_what_chats_are(fields: dict[str, Any]) -> None:
    with served(scripted_engine()) as client:
        response = client.post("/v1/completions", json={"prompt": "a", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["message"].endswith("use /v1/chat/completions")


def test_values_that_ask_for_nothing_pass_everywhere_and_are_not_named() -> None:
    fields: dict[str, Any] = {"store": False, "service_tier": "auto", "modalities": ["text"], "metadata": {}}
    assert check(fields) == check(fields, is_strict=True) == []


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"nonsense": 1}, "nonsense"),
        ({"store": True}, "store"),
        ({"messages": [{"role": "user", "content": "a", "id": 1}]}, "messages.id"),
    ],
)
def test_a_strict_server_ignores_nothing(fields: dict[str, Any], place: str) -> None:
    with pytest.raises(ApiError, match=rf"^{place} is not a field") as caught:
        check(fields, is_strict=True)
    assert (caught.value.status, caught.value.param) == (422, place.partition(".")[0])


@pytest.mark.parametrize(
    "name", [name for name in REFUSED_OF_RESPONSES if name not in ResponseRequest.model_fields]
)
def test_a_response_refuses_what_it_cannot_do_by_name(name: str) -> None:
    body = ResponseRequest.model_validate({"input": "a", name: ["a"]})
    with pytest.raises(ApiError, match=rf"^{name}: "):
        IgnoredFields().check(body, REFUSED_OF_RESPONSES)


@contextmanager
def served_by(**rules: Any) -> Generator[TestClient, None, None]:
    with running_service(scripted_engine("a")) as service:
        service.rules = RequestRules(**rules)
        with TestClient(create_app(service)) as client:
            yield client


@pytest.mark.parametrize("is_stream", [False, True])
def test_ignored_fields_are_in_a_header_and_once_in_the_log(
    is_stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "baichuan2_tpu.server.api.fields")
    with served(scripted_engine("a", "b")) as client:
        bodies = [chat_body(keep_alive=1, stream=is_stream), chat_body(keep_alive=1, user_id=2)]
        first, second = (client.post(CHAT, json=body) for body in bodies)
    assert first.headers["x-ignored-fields"] == "keep_alive"
    assert second.headers["x-ignored-fields"] == "keep_alive, user_id"
    assert [vars(record)["fields"] for record in caplog.records] == [
        {"fields": "keep_alive"},
        {"fields": "user_id"},
    ]


def test_a_strict_server_refuses_through_its_route() -> None:
    with served_by(is_strict=True) as client:
        assert client.post(CHAT, json=chat_body(nonsense=1)).status_code == 422
        assert client.post(CHAT, json=chat_body()).status_code == 200


@pytest.mark.parametrize("model", ["TINY", "tiny:latest", "", None])
def test_a_model_is_found_by_any_spelling_of_its_name(model: str | None) -> None:
    with served(scripted_engine("a")) as client:
        assert client.post(CHAT, json=chat_body(model=model)).status_code == 200


def test_any_model_is_answered_for_where_that_is_allowed() -> None:
    with served_by(is_any_model=True) as client:
        answer = client.post(CHAT, json=chat_body(model="gpt-4o-mini"))
    assert (answer.status_code, answer.json()["model"]) == (200, "tiny")


@pytest.mark.parametrize(
    ("fields", "text", "reason"),
    [
        ({"max_tokens": 2.0}, "he", "length"),
        ({"max_tokens": -1}, "hello", "stop"),
        ({"n_predict": 3}, "hel", "length"),
        ({"top_k": -1, "top_p": 1}, "hello", "stop"),
        ({"stop_token_ids": [ord("o")]}, "hell", "stop"),
        ({"ignore_eos": False, "min_tokens": 0}, "hello", "stop"),
        ({"stream_options": {"include_usage": True}}, "hello", "stop"),
        ({"repeat_penalty": 1}, "hello", "stop"),
    ],
)
def test_settings_of_other_servers_are_honoured(fields: dict[str, Any], text: str, reason: str) -> None:
    with served(scripted_engine("hello")) as client:
        (choice,) = client.post(CHAT, json=chat_body(**fields)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (text, reason)


def test_a_limit_of_another_name_holds_for_completions() -> None:
    body = {"prompt": "a", "n_predict": 2}
    with served(scripted_engine("hello")) as client:
        (choice,) = client.post("/v1/completions", json=body).json()["choices"]
    assert choice["text"] == "he"
