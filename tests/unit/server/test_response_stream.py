"""A streamed response: OpenAI's events in their order, numbered, and an end in any case."""

import json
from typing import Any

import httpx2
import pytest
from httpx2 import Response

from baichuan2_tpu.server.app import create_app
from doubles.fakes import ScriptedEngine
from doubles.gated_engine import GatedEngine
from running.served import MODEL, listening, running_service, scripted_engine, served

RESPONSES = "/v1/responses"
CLOCK = {"type": "function", "name": "read_clock"}
CALL = '{"name": "read_clock", "arguments": {}}'


def events_of(response: Response) -> list[dict[str, Any]]:
    """Return the events of a stream, and check the form of each and their numbers."""
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    *texts, rest = response.text.split("\n\n")
    assert rest == ""
    events: list[dict[str, Any]] = []
    for text in texts:
        if text.startswith(":"):
            continue  # a comment, on a slow machine
        name, data = text.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def stream(engine: ScriptedEngine, **fields: Any) -> list[dict[str, Any]]:
    with served(engine) as client:
        return events_of(
            client.post(RESPONSES, json={"model": MODEL, "input": "hi", "stream": True, **fields})
        )


def kinds_of(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


def test_a_text_comes_with_all_its_events() -> None:
    events = stream(scripted_engine("你!"))
    assert kinds_of(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    first, last = events[0]["response"], events[-1]["response"]
    assert (first["status"], first["output"], first["usage"]) == ("in_progress", [], None)
    assert (last["status"], last["usage"]["output_tokens"]) == ("completed", 4)
    assert [event["delta"] for event in events[4:6]] == ["你", "!"]
    assert events[2]["item"]["content"] == []
    assert events[6]["text"] == events[7]["part"]["text"] == "你!"
    (item,) = last["output"]
    assert events[8]["item"] == item
    assert {event["item_id"] for event in events if "item_id" in event} == {item["id"]}
    assert {event["output_index"] for event in events if "output_index" in event} == {0}
    assert first["id"] == last["id"]


def test_a_text_before_calls_ends_where_they_begin_and_each_call_is_an_item() -> None:
    text = f"Well.<tool_call>[{CALL}, {CALL}]</tool_call>"
    events = stream(scripted_engine(text, max_context=4096), tools=[CLOCK], max_output_tokens=200)
    kinds = [kind for kind in kinds_of(events) if not kind.endswith("delta")]
    call = ["output_item.added", "function_call_arguments.done", "output_item.done"]
    message = ["output_item.added", "content_part.added", "output_text.done", "content_part.done"]
    assert kinds == ["created", "in_progress", *message, "output_item.done", *call, *call, "completed"]
    output = events[-1]["response"]["output"]
    done = [event for event in events if event["type"] == "response.output_item.done"]
    assert [event["item"] for event in done] == output
    assert [event["output_index"] for event in done] == [0, 1, 2]
    assert [item["type"] for item in output] == ["message", "function_call", "function_call"]
    for index, item in enumerate(output[1:], 1):
        pieces = [
            event["delta"]
            for event in events
            if event["type"].endswith("arguments.delta") and event["output_index"] == index
        ]
        assert "".join(pieces) == item["arguments"] == "{}"
    assert len({item["id"] for item in output}) == len({item.get("call_id") for item in output}) == 3


@pytest.mark.parametrize("text", ["", "a <tool_call"])
def test_an_answer_without_calls_is_a_message(text: str) -> None:
    events = stream(scripted_engine(text, max_context=4096), tools=[CLOCK], max_output_tokens=200)
    (item,) = events[-1]["response"]["output"]
    assert item["content"][0]["text"] == text


def test_log_probabilities_come_with_the_text_they_belong_to() -> None:
    events = stream(scripted_engine("你!"), top_logprobs=1)
    deltas = [event for event in events if event["type"].endswith("text.delta")]
    assert [[entry["bytes"] for entry in event["logprobs"]] for event in deltas] == [
        [[byte] for byte in "你".encode()],
        [[33]],
    ]
    done = next(event for event in events if event["type"].endswith("text.done"))
    assert done["logprobs"] == [entry for event in deltas for entry in event["logprobs"]]


def test_a_stream_that_reached_its_limit_ends_incomplete() -> None:
    last = stream(scripted_engine("hello"), max_output_tokens=2)[-1]
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert last["response"]["output"][0]["status"] == "incomplete"


def test_a_streamed_response_is_stored_before_it_is_said_to_be_complete() -> None:
    with served(scripted_engine("b", "d")) as client:
        body = {"model": MODEL, "input": "a", "stream": True}
        last = events_of(client.post(RESPONSES, json=body))[-1]["response"]
        assert client.get(f"{RESPONSES}/{last['id']}").json() == last
        body |= {"input": "c", "previous_response_id": last["id"]}
        second = events_of(client.post(RESPONSES, json=body))[-1]["response"]
    assert second["usage"]["input_tokens"] == len("abc") + 4


@pytest.mark.parametrize("steps", [0, 3])
def test_a_fault_is_told_as_an_error_and_ends_the_response(steps: int) -> None:
    engine = scripted_engine("hello")
    engine.fail_after = steps
    with served(engine) as client:
        body = {"model": MODEL, "input": "a", "stream": True}
        *_, error, failed = events_of(client.post(RESPONSES, json=body))
        assert client.get(f"{RESPONSES}/{failed['response']['id']}").status_code == 404
    assert (error["type"], error["code"]) == ("error", "engine_failed")
    assert error["message"] == error["error"]["message"]
    assert failed["type"] == "response.failed"
    response = failed["response"]
    assert (response["status"], response["store"]) == ("failed", False)
    assert response["error"] == {"code": "server_error", "message": error["message"]}


def test_what_is_wrong_with_a_request_is_a_status_and_no_event() -> None:
    with served(scripted_engine()) as client:
        body = {"model": MODEL, "input": "a" * 300, "stream": True}
        response = client.post(RESPONSES, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")


def test_a_stream_is_begun_at_once_and_never_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baichuan2_tpu.server.api.live_response._QUIET_S", 0.02)
    engine = GatedEngine(256, prompt_piece=16)
    body = {"model": MODEL, "input": "x" * 40, "stream": True, "max_output_tokens": 2}
    with (
        running_service(engine) as service,
        listening(create_app(service)) as url,
        httpx2.Client(base_url=url, timeout=20) as client,
        client.stream("POST", RESPONSES, json=body) as response,
    ):
        lines = response.iter_lines()
        head = [next(lines) for _ in range(6)]
        assert [line for line in head if line.startswith("event: ")] == [
            "event: response.created",
            "event: response.in_progress",
        ]
        comments = iter(line for line in lines if line.startswith(":"))
        assert next(line for line in comments if line != ": waiting") == ": reading 0 of 42"
        engine.gate.release()
        assert ": reading 16 of 42" in comments
        engine.gate.release(1000)
        assert "event: response.incomplete" in lines
