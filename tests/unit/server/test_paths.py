"""Paths, methods and content types that mean a route of the API and write it otherwise."""

import json

import pytest

from baichuan2_tpu.server.app import ServerOptions, create_app
from baichuan2_tpu.server.known_paths import PATHS, STORED
from running.served import chat_body, running_service, scripted_engine, served

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "path",
    [
        "/chat/completions",
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/v1/chat/completions",
        f"{CHAT}/",
    ],
)
def test_a_path_without_v1_or_with_more_slashes_answers_as_with_it(path: str) -> None:
    with served(scripted_engine("ok")) as client:
        response = client.post(f"http://testserver{path}", json=chat_body())
    assert response.status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/v1/models/tiny", "/models/tiny", "/health"])
def test_head_is_answered_as_get_without_a_body(path: str) -> None:
    with served(scripted_engine("ok", "ok")) as client:
        whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


def test_a_tidied_path_needs_its_key() -> None:
    with served(scripted_engine("ok"), ServerOptions(frozenset({"k"}))) as client:
        assert (
            client.get("http://testserver//v1/models").status_code == client.get("/models").status_code == 401
        )
        assert client.get("http://testserver//health").status_code == 200


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_a_body_needs_no_content_type(content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    with served(scripted_engine("ok")) as client:
        response = client.post(CHAT, content=json.dumps(chat_body()).encode(), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/nothing", "there is no /nothing here; there are POST /v1/chat/completions, "),
        ("/v1/embeddings", "there is no /v1/embeddings here: this model writes text and has no embeddings; "),
        ("/api/tags", "Ollama's interface is not served; use OpenAI's"),
        ("/v1/responses/input_tokens/more", "GET or DELETE /v1/responses/{response_id}, "),
        ("/v1/responses/resp_1/cancel", "nothing is computed in the background"),
        ("/v1/messages", "Anthropic's interface is not served; use OpenAI's"),
    ],
)
def test_an_unknown_path_names_those_that_exist(path: str, reason: str) -> None:
    with served(scripted_engine()) as client:
        response = client.post(path, json={})
    assert response.status_code == 404
    assert reason in response.json()["error"]["message"]


def test_another_method_names_the_right_one() -> None:
    with served(scripted_engine()) as client:
        response = client.get(CHAT)
    assert response.status_code == 405
    assert response.json()["error"]["message"] == f"GET is not allowed for {CHAT}; use POST"


@pytest.mark.parametrize("base", ["/v1/responses", "/responses", "//v1//responses"])
def test_stored_responses_have_paths_of_their_own(base: str) -> None:
    with served(scripted_engine("ok")) as client:
        base = f"http://testserver{base}"
        response_id = client.post(f"{base}/", json={"input": "hi"}).json()["id"]
        for path in (f"{base}/{response_id}", f"{base}/{response_id}/", f"{base}/{response_id}/input_items"):
            whole, head = client.get(path), client.head(path)
            assert (whole.status_code, head.status_code, head.content) == (200, 200, b"")
        assert client.delete(f"{base}/{response_id}").json()["deleted"] is True
        assert client.head(f"{base}/{response_id}").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/responses", "POST"),
        ("PUT", "/v1/responses/resp_1", "GET or DELETE"),
        ("DELETE", "/v1/responses/resp_1/input_items", "GET"),
    ],
)
def test_another_method_of_a_response_names_the_right_ones(method: str, path: str, allowed: str) -> None:
    with served(scripted_engine()) as client:
        response = client.request(method, path)
    assert response.status_code == 405
    assert response.json()["error"]["message"] == f"{method} is not allowed for {path}; use {allowed}"


def test_the_paths_that_are_named_are_those_that_are_served() -> None:
    with running_service(scripted_engine()) as service:
        described = create_app(service).openapi()["paths"]
    served_paths = {path: " or ".join(map(str.upper, methods)) for path, methods in described.items()}
    assert {**served_paths, "/openapi.json": "GET"} == {**PATHS, **STORED, "/v1/models/{name}": "GET"}
