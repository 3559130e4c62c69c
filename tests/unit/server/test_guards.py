"""Who may ask, and how much: keys, sizes, other pages, and bodies that are no request."""

import json
from collections.abc import Iterator

import pytest

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.server.app import ServerOptions
from doubles.fakes import ByteTokenizer
from running.served import chat_body, scripted_engine, served

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
LIMIT = 4 * 2**20


@pytest.mark.parametrize(
    "header", [None, "Bearer", "Bearer ", "Bearer wrong", "Basic secret", "secret", "Bearer sécret"]
)
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nowhere"])
def test_nothing_is_served_without_a_key(header: str | None, path: str) -> None:
    headers = [] if header is None else [(b"Authorization", header.encode())]
    with served(scripted_engine(), ServerOptions(api_keys=frozenset({"secret"}))) as client:
        response = client.get(path, headers=headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", ["secret", "other"])
def test_each_key_opens_and_health_needs_none(key: str) -> None:
    options = ServerOptions(api_keys=frozenset({"secret", "other"}))
    engine = scripted_engine()
    engine.enqueue_ids([0, *b"ok", ByteTokenizer.END_ID])  # the first for the proof that it works
    with served(engine, options) as client:
        assert client.get("/health").status_code == 200
        answer = client.post(CHAT, json=chat_body(), headers={"Authorization": f"Bearer {key}"})
        assert "HTTPBearer" in client.get("/openapi.json", headers={"Authorization": f"Bearer {key}"}).text
    assert answer.json()["choices"][0]["message"]["content"] == "ok"


def test_an_empty_key_is_refused_before_it_lets_everybody_in() -> None:
    with (
        pytest.raises(RequestError, match="empty"),
        served(scripted_engine(), ServerOptions(frozenset({""}))),
    ):
        pass


@pytest.mark.parametrize("key", ["sécret", "two words", "secret\n", "\ufeffsecret"])
def test_a_key_that_no_header_carries_is_refused(key: str) -> None:
    with pytest.raises(RequestError, match="which an HTTP header cannot carry") as caught:
        ServerOptions(frozenset({key}))
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    "origin", ["page.test", "http://page.test/", "http://", "ftp://page.test", "null", ""]
)
def test_what_no_browser_calls_an_origin_is_refused(origin: str) -> None:
    # It never matched, and nobody was told.
    with pytest.raises(RequestError, match="is not a web origin"):
        ServerOptions(cors_origins=(origin,))


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(RequestError, match="max_body_bytes is 0"):
        ServerOptions(max_body_bytes=0)


def test_other_pages_may_ask_only_when_they_are_named() -> None:
    headers = {"Origin": "http://page.test"}
    with served(scripted_engine()) as client:
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=headers).headers
    options = ServerOptions(frozenset({"secret"}), cors_origins=("http://page.test",))
    with served(scripted_engine(), options) as client:
        preflight = client.options(CHAT, headers={**headers, "Access-Control-Request-Method": "POST"})
        refused = client.options(
            CHAT, headers={"Origin": "http://other.test", "Access-Control-Request-Method": "POST"}
        )
    assert preflight.headers["access-control-allow-origin"] == "http://page.test"
    assert "access-control-allow-origin" not in refused.headers


def test_the_client_of_openai_may_ask_from_a_page_that_is_named() -> None:
    asked = {
        "Origin": "http://page.test",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
    }
    with served(scripted_engine(), ServerOptions(cors_origins=("http://page.test",))) as client:
        preflight = client.options(CHAT, headers=asked)
        answer = client.get("/v1/models", headers={"Origin": "http://page.test"})
    assert preflight.status_code == 200
    assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
    assert answer.headers["access-control-expose-headers"] == (
        "Retry-After, X-Request-Id, X-Ignored-Fields, X-Tools-Left-Out"
    )


def test_a_page_cannot_ask_without_a_preflight() -> None:
    # A browser sends text/plain to any host without asking first, and always says which page it is for.
    headers = {"Content-Type": "text/plain", "Origin": "http://page.test"}
    with served(scripted_engine()) as client:
        response = client.post(CHAT, content=json.dumps(chat_body()), headers=headers)
    assert response.status_code == 422
    assert response.json()["error"]["message"].endswith("with the header Content-Type: application/json")


def chunked(size: int) -> Iterator[bytes]:
    for _ in range(size // 2**16):
        yield b" " * 2**16


@pytest.mark.parametrize("content", [b" " * 10_000_000, chunked(10_000_000)], ids=["length", "chunked"])
def test_a_body_that_is_too_large_is_refused(content: bytes | Iterator[bytes]) -> None:
    with served(scripted_engine("ok")) as client:
        response = client.post(CHAT, content=content, headers=JSON)
        assert client.post(CHAT, json=chat_body()).status_code == 200
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_a_body_of_the_largest_size_is_read() -> None:
    body = json.dumps(chat_body(max_tokens=1)).encode()
    with served(scripted_engine("ok")) as client:
        padded = body + b" " * (LIMIT - len(body))
        assert client.post(CHAT, content=padded, headers=JSON).status_code == 200
        assert client.post(CHAT, content=padded + b" ", headers=JSON).status_code == 413


BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "invalid UTF-8": b'{"model": "\xff\xfe"}',
    "a list": b"[]",
    "null": b"null",
    "a number": b"17",
    "NaN": b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "temperature": NaN}',
    "infinity": b'{"model": "tiny", "messages": [{"role": "user", "content": "a"}], "top_p": -Infinity}',
    "a huge number": b'{"model": "tiny", "seed": ' + b"9" * 5000 + b"}",
    "a float too large": b'{"model": "tiny", "temperature": 1e999}',
    "deep lists": b'{"model": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "deep objects": b'{"response_format": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
    "a lone surrogate": b'{"model": "\\ud800", "messages": [{"role": "user", "content": "a"}]}',
    "a lone surrogate as a name": b'{"\\ud800": 1}',
    "a lone surrogate to read": b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
    "the same field twice": b'{"model": "tiny", "model": 1}',
    "a byte order mark": b'\xef\xbb\xbf{"model": "tiny"}',
    "UTF-16": '{"model": "tiny"}'.encode("utf-16"),
}


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/tokenize", "/detokenize"])
@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_is_no_request_is_an_error_object_and_the_server_goes_on(path: str, name: str) -> None:
    with served(scripted_engine("ok")) as client:
        response = client.post(path, content=BODIES[name], headers=JSON)
        assert client.post(CHAT, json=chat_body()).status_code == 200
    assert response.status_code in (400, 404, 422), response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
