"""Gradio is handed nothing that it would print: its tracebacks hold what a client sent."""

import asyncio
import json
from collections.abc import Generator

import pytest
from httpx2 import Response
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from baichuan2_tpu.server.app import ServerOptions, create_app
from baichuan2_tpu.server.page.gradio_app import add_page
from baichuan2_tpu.server.page.gradio_guards import JOIN_PATH, EventFilter
from baichuan2_tpu.server.transport.guards import BodyLimit
from doubles.talking_engine import TalkingEngine
from running.served import running_service

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Gradio counts events with pandas

EVENT = {"session_hash": "abc", "fn_index": 4, "data": [{"id": "t"}, None], "trigger_id": 7}
SETTINGS = {
    "system": "",
    "temperature": 0,
    "top_k": 1,
    "top_p": 1,
    "min_p": 0,
    "repetition_penalty": 1,
    "max_tokens": 4,
    "seed": 1,
}
TURN = {"id": "t", "messages": [{"role": "user", "content": "hi"}], "settings": SETTINGS}


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body that came."""
    body = await Request(scope, receive).body()
    await JSONResponse(json.loads(body))(scope, receive, send)


def passed(**changes: object) -> Response:
    client = TestClient(EventFilter(echo, {4: 2}))
    return client.post(JOIN_PATH, content=json.dumps(EVENT | changes))


def test_an_event_passes_without_what_else_was_sent() -> None:
    assert passed(batched=True, oauth_token="a").json() == {**EVENT, "event_data": None}


@pytest.mark.parametrize(
    "changes",
    [
        {"fn_index": 99},
        {"fn_index": -1},
        {"fn_index": "4"},
        {"data": [{"id": "t", "messages": "SECRET"}]},
        {"data": "SECRET"},
        {"session_hash": "a b\n"},
        {"session_hash": "\ud800"},
        {"session_hash": None},
        {"data": ["\ud800", None]},
        {"trigger_id": "x"},
    ],
)
def test_what_the_page_never_sends_is_refused_and_not_repeated(changes: dict[str, object]) -> None:
    refusal = passed(**changes)
    assert refusal.status_code == 422
    assert refusal.json()["error"]["message"] == "this is not an event of the page; reload it"


def test_a_body_that_is_no_json_is_refused() -> None:
    client = TestClient(EventFilter(echo, {4: 2}))
    assert client.post(JOIN_PATH, content=b"\xff{").status_code == 422


def test_a_client_that_leaves_before_its_event_is_whole_is_no_fault() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def nowhere(_message: Message) -> None:
        raise AssertionError

    scope = {"type": "http", "method": "POST", "path": JOIN_PATH, "headers": []}
    asyncio.run(BodyLimit(EventFilter(echo, {4: 2}), 1000)(scope, gone, nowhere))


@pytest.fixture
def page() -> Generator[TestClient, None, None]:
    with running_service(TalkingEngine()) as service:
        options = ServerOptions(max_body_bytes=100_000)
        app = create_app(service, options)
        add_page(app, service, options)
        with TestClient(app) as client:
            yield client


def function_index(page: TestClient, name: str) -> int:
    """Return the index under which the browser calls a function of the page."""
    (index, *_) = [
        function["id"]
        for function in page.get("/config").json()["dependencies"]
        if function["api_name"] == name
    ]
    return index


def ask(page: TestClient, name: str, **fields: object) -> str:
    """Send an event and return what its stream says until it is over."""
    event = {"session_hash": "s1", "fn_index": function_index(page, name), **fields}
    assert page.post(JOIN_PATH, json=event).status_code == 200
    received = ""
    with page.stream("GET", "/gradio_api/queue/data?session_hash=s1") as stream:
        for line in stream.iter_lines():
            received += line
            if "process_completed" in line:
                break
    return received


def test_a_turn_is_answered(page: TestClient) -> None:
    assert '"success":true' in ask(page, "answer", data=[TURN, None])


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("answer", {"data": [TURN | {"SECRET\n\x1b[2J": 1}, None]}),
        ("answer", {"data": [{"id": "t", "messages": "SECRET"}, None]}),
        ("answer", {"data": ["SECRET", None]}),
        ("read_edit", {"data": []}),
        ("read_edit", {"data": [], "event_data": "SECRET"}),
        ("read_edit", {"data": [], "event_data": {"SECRET": 1}}),
        ("stop", {"data": [{"SECRET": 1}, None]}),
    ],
)
def test_what_is_wrong_in_an_event_is_not_printed(
    page: TestClient, capfd: pytest.CaptureFixture[str], name: str, fields: dict[str, object]
) -> None:
    ask(page, name, **fields)
    assert capfd.readouterr() == ("", "")
