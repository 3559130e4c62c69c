"""Requests of Open WebUI, Dify, MaxKB and Continue, answered as the programs need it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from typing import Any

import httpx
import pytest

from baichuan2_tpu.server.service import RequestRules
from clients.acting_server import acting_server
from clients.programs import BUILTIN_TOOLS, PROGRAMS, Exchange, builtin_tools
from running.served import MODEL

CASES = [(program.name, exchange) for program in PROGRAMS for exchange in program.exchanges]
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Say hello."}], "tools": builtin_tools()}


@pytest.fixture(scope="module")
def client() -> Generator[httpx.Client, None, None]:
    with acting_server() as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(("program", "exchange"), CASES, ids=[f"{name}-{case.name}" for name, case in CASES])
def test_a_program_gets_what_it_asks_for(program: str, exchange: Exchange, client: httpx.Client) -> None:
    response = send(client, exchange)
    assert response.status_code == 200, f"{program}: {response.text}"
    assert response.headers.get("x-ignored-fields") == exchange.ignored
    if exchange.body is None:
        assert [model["id"] for model in response.json()["data"]] == [MODEL]
        return
    text, arguments = read(response)
    assert exchange.text in ("", text)
    assert tuple(arguments) == exchange.arguments


def send(client: httpx.Client, exchange: Exchange) -> httpx.Response:
    if exchange.body is None:
        return client.get(exchange.path, headers=dict(exchange.headers))
    body = json.dumps(exchange.body, ensure_ascii=False).replace("{model}", MODEL)
    headers = {"Content-Type": "application/json", **exchange.headers}
    return client.post(exchange.path, content=body.encode(), headers=headers)


def read(response: httpx.Response) -> tuple[str, list[str]]:
    """Return the text and the arguments of the calls, as the programs put them together."""
    text, calls = "", dict[int, str]()
    for piece in pieces(response):
        if piece.get("type") == "response.output_text.delta":
            text += piece["delta"]
        for choice in piece.get("choices", ()):
            message = choice.get("delta") or choice.get("message") or {}
            text += message.get("content") or choice.get("text") or ""
            for index, call in enumerate(message.get("tool_calls") or ()):
                place = call.get("index", index)
                calls[place] = calls.get(place, "") + call["function"]["arguments"]
    return text, [calls[place] for place in sorted(calls)]


def pieces(response: httpx.Response) -> Iterator[dict[str, Any]]:
    if not response.headers["content-type"].startswith("text/event-stream"):
        yield response.json()
        return
    events = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    is_chat = "responses" not in response.url.path
    assert (events[-1] == "[DONE]") == is_chat
    yield from map(json.loads, events[:-1] if is_chat else events)


def test_the_tools_of_open_webui_fit_where_the_server_may_leave_some_out(client: httpx.Client) -> None:
    """Open WebUI sends 36 tools with every question, more than Baichuan2 can read."""
    refused = client.post("/v1/chat/completions", json=ASK)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
    assert "describe 36 tools" in refused.json()["error"]["message"]
    with acting_server(RequestRules(tools="fit")) as url:
        response = httpx.post(f"{url}/v1/chat/completions", json=ASK, timeout=60, trust_env=False)
    left_out, _, count = response.headers["x-tools-left-out"].partition(" of ")
    assert (response.status_code, count) == (200, str(len(BUILTIN_TOOLS)))
    assert 0 < int(left_out) < len(BUILTIN_TOOLS)
    assert read(response)[0] == "Hello! How can I help?"
