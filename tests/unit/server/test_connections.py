"""Clients that send half of a request and no more do not keep their connections."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from baichuan2_tpu.server.transport import connection as connection_module
from baichuan2_tpu.server.transport import guards
from baichuan2_tpu.server.transport.guards import BodyLimit
from running.served import listening

REQUEST = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer after some time, whatever is asked."""
    await asyncio.sleep(0.5)
    await PlainTextResponse("ok")(scope, receive, send)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    monkeypatch.setattr(connection_module, "_HEAD_S", 0.2)
    with listening(answer) as url:
        address = urlsplit(url)
        with socket.create_connection((address.hostname, address.port or 0), timeout=60) as client:
            yield client


def read_all(client: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    return b"".join(iter(lambda: client.recv(2**16), b""))


@pytest.mark.parametrize("sent", [b"", b"GET / HT", REQUEST[:-2]])
def test_a_connection_without_a_whole_head_is_closed(client: socket.socket, sent: bytes) -> None:
    client.sendall(sent)
    assert read_all(client) == b""


def test_an_answer_may_take_longer_than_a_head(client: socket.socket) -> None:
    client.sendall(REQUEST)
    assert client.recv(2**16).startswith(b"HTTP/1.1 200 OK")


def test_the_head_of_a_later_request_has_its_own_time(client: socket.socket) -> None:
    client.sendall(REQUEST + REQUEST[:-2])
    answer = read_all(client)
    assert answer.count(b"200 OK") == 1
    assert answer.endswith(b"ok")


def test_a_body_nobody_waits_for_does_not_hold_a_connection(client: socket.socket) -> None:
    client.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n1")
    answer = b""
    while not answer.endswith(b"ok"):  # head and body may come apart
        piece = client.recv(2**16)
        assert piece
        answer += piece
    assert answer.startswith(b"HTTP/1.1 200 OK")
    client.sendall(b"2")  # which ended uvicorn's own wait
    assert read_all(client) == b""


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"a" * 100_000,
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: -1\r\n\r\n",
    ],
    ids=["endless head", "no HTTP", "no host", "no length"],
)
def test_what_is_not_http_is_refused_with_an_error_object(client: socket.socket, sent: bytes) -> None:
    # A client got plain text where every other error is an object.
    client.sendall(sent)
    head, _, body = read_all(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request")
    assert json.loads(body)["error"]["code"] == "invalid_http"


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
@pytest.mark.parametrize("requests", [1, 2])
def test_a_client_that_sends_no_more_is_answered(
    client: socket.socket, version: bytes, requests: int
) -> None:
    # It was taken for one that had left.
    connection = b"Connection: keep-alive\r\n" if version == b"1.1" else b""
    client.sendall((b"GET / HTTP/%b\r\nHost: test\r\n%b\r\n" % (version, connection)) * requests)
    client.shutdown(socket.SHUT_WR)
    received = read_all(client)
    assert received.count(b"200 OK") == (requests if version == b"1.1" else 1)
    assert received.endswith(b"ok")


def test_a_client_that_sends_no_more_of_its_body_is_not_waited_for(client: socket.socket) -> None:
    client.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 9\r\n\r\n1")
    client.shutdown(socket.SHUT_WR)
    assert read_all(client) == b""


def test_a_body_that_does_not_come_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_BODY_S", 0.1)
    sent: list[Message] = []

    async def receive() -> Message:
        await asyncio.sleep(0.04)
        return {"type": "http.request", "body": b"1", "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(BodyLimit(answer, 1000)({"type": "http"}, receive, send))
    assert sent[0]["status"] == 408
    assert b"request_timeout" in sent[1]["body"]


def test_a_body_that_is_not_whole_when_the_server_ends_is_refused() -> None:
    sent: list[Message] = []
    is_reading = asyncio.Event()

    async def receive() -> Message:
        is_reading.set()
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    async def end() -> None:
        reading = asyncio.ensure_future(BodyLimit(answer, 1000)({"type": "http"}, receive, send))
        await is_reading.wait()
        reading.cancel()
        await reading

    asyncio.run(end())
    assert sent[0]["status"] == 503
    assert b"the server is shutting down" in sent[1]["body"]
