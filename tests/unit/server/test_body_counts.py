"""A body with too many things in it is refused before the event loop reads it."""

from __future__ import annotations

import asyncio
import json

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.transport import body_counts
from baichuan2_tpu.server.transport.body_counts import LARGE_BYTES, check_counts
from baichuan2_tpu.server.transport.guards import BodyLimit
from running.served import MODEL, scripted_engine, served

MESSAGE = {"role": "user", "content": ""}


def body(**fields: object) -> bytes:
    return json.dumps({"model": MODEL, **fields}).encode()


@pytest.mark.parametrize(("path", "name"), [("/v1/chat/completions", "messages"), ("/v1/responses", "input")])
def test_many_messages_are_refused_with_their_limit(path: str, name: str) -> None:
    # 70,000 messages were checked in the event loop, where every other answer waited.
    with served(scripted_engine()) as client:
        response = client.post(
            path,
            content=body(**{name: [MESSAGE] * 70_000}),
            headers={"Content-Type": "application/json"},
        )
    assert response.status_code == 422
    error = response.json()["error"]
    assert (error["code"], error["param"]) == ("too_many_values", name)
    assert "more than 4096 messages" in error["message"]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (body(messages=[MESSAGE | {"content": [{"type": "text", "text": ""}] * 20_000}]), "objects"),
        (body(tools=[{"a": [{}] * 20_000}]), "objects"),
        (body(prompt=list(range(400_001))), "values"),
        (body(stop=[""] * 400_001), "values"),
        (body(logit_bias={str(token_id): 1 for token_id in range(400_001)}), "values"),
        (json.dumps([[1] * 200_000] * 3).encode(), "values"),
    ],
    ids=["parts", "tools", "ids", "stops", "biases", "a list"],
)
def test_every_kind_of_too_many_is_named(content: bytes, name: str) -> None:
    with pytest.raises(ApiError, match=f"the body has more than [0-9]+ {name}"):
        check_counts(content)


@pytest.mark.parametrize(
    ("allowed", "one_more"),
    [
        (body(messages=[MESSAGE] * 4096), body(messages=[MESSAGE] * 4097)),
        (body(prompt=[[1] * 3000] * 128), body(prompt=[[1] * 3200] * 128)),
    ],
    ids=["messages", "ids"],
)
def test_as_many_as_are_allowed_pass(allowed: bytes, one_more: bytes) -> None:
    check_counts(allowed)
    with pytest.raises(ApiError, match="the body has more than"):
        check_counts(one_more)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"1", b"\xff", b"[" * 100_000, b"9" * 5000, body(prompt="," * 4_000_000)],
    ids=["nothing", "no JSON", "a number", "no text", "deep", "a huge number", "a text"],
)
def test_what_is_not_json_or_has_few_values_is_left_to_the_reader(content: bytes) -> None:
    refusals: list[ApiError] = []
    try:
        check_counts(content)
    except ApiError as refusal:
        refusals.append(refusal)
    assert refusals == []


def test_a_small_body_has_no_room_for_too_many() -> None:
    least = min(len(json.dumps(MESSAGE, separators=(",", ":"))) + 1, len("{},") * body_counts._MAX_OBJECTS)
    assert LARGE_BYTES // least < body_counts._MAX_MESSAGES
    assert LARGE_BYTES // len("1,") < body_counts._MAX_VALUES


def test_no_more_requests_are_in_work_than_allowed() -> None:
    # Each holds a body of some MB while it waits for a thread.
    async def wait(scope: Scope, receive: Receive, send: Send) -> None:
        if await Request(scope, receive).body() == b"first":
            is_begun.set()
            await goes_on.wait()
        await PlainTextResponse("ok")(scope, receive, send)

    async def ask(content: bytes) -> int:
        statuses: list[int] = []
        unread = [{"type": "http.request", "body": content, "more_body": False}]

        async def receive() -> dict[str, object]:
            return unread.pop()

        async def send(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start":
                statuses.append(int(str(message["status"])))

        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        await limit(scope, receive, send)  # pyright: ignore[reportArgumentType] - messages of this test
        return statuses[0]

    async def run() -> list[int]:
        first = asyncio.ensure_future(ask(b"first"))
        await is_begun.wait()
        statuses = [await ask(b"second"), await ask(b"")]
        goes_on.set()
        return [*statuses, await first, await ask(b"third")]

    is_begun, goes_on = asyncio.Event(), asyncio.Event()
    limit = BodyLimit(wait, 1000, max_requests=1)
    assert asyncio.run(run()) == [429, 200, 200, 200]
