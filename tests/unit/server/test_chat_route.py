"""A chat through the app: what is asked for is done or refused, whole and as a stream."""

import json
from collections.abc import Sequence
from threading import Event
from typing import Any

import numpy as np
import pytest
from httpx2 import Response
from numpy.typing import NDArray
from starlette.testclient import TestClient

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from doubles.fakes import ByteTokenizer, HistoryEngine
from running.served import MODEL, chat_body, running_service, scripted_engine, served
from schedules.serving import request

CHAT = "/v1/chat/completions"
VOCABULARY = ByteTokenizer().vocabulary_size


def chunks(response: Response) -> list[dict[str, Any]]:
    """Return the objects of a stream, which must end as OpenAI's do."""
    *events, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    assert all(event.startswith("data: ") for event in events)
    return [json.loads(event.removeprefix("data: ")) for event in events]


class HeldEngine(HistoryEngine):
    """Waits before its first step."""

    def __init__(self) -> None:
        super().__init__(VOCABULARY)
        self.may_go_on = Event()

    def forward(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        self.may_go_on.wait()
        return super().forward(chunks)


def error(response: Response) -> tuple[int, str | None, str | None]:
    """Return status, field and code of an error object."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return response.status_code, error["param"], error["code"]


def test_an_answer_comes_with_its_reason_and_true_counts() -> None:
    with served(scripted_engine("你好!")) as client:
        answer = client.post(CHAT, json=chat_body("hi")).json()
    assert answer["object"] == "chat.completion"
    assert (answer["model"], answer["system_fingerprint"].rsplit("-", 1)[1]) == (MODEL, "fake")
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert (choice["message"]["content"], choice["finish_reason"]) == ("你好!", "stop")
    assert choice["logprobs"] is None
    usage = answer["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (4, 7, 11)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_an_answer_ends_at_the_limit_by_either_name(name: str) -> None:
    with served(scripted_engine("hello")) as client:
        (choice,) = client.post(CHAT, json=chat_body(**{name: 2})).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("he", "length")


@pytest.mark.parametrize("stop", ["lo", ["xx", "lo"]])
def test_an_answer_ends_before_a_stop_string(stop: object) -> None:
    with served(scripted_engine("hello world")) as client:
        (choice,) = client.post(CHAT, json=chat_body(stop=stop)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("hel", "stop")


def test_a_stream_says_the_same_as_the_whole_answer() -> None:
    asked = {"logprobs": True, "top_logprobs": 1}
    with served(scripted_engine("你好!", "你好!")) as client:
        (whole,) = client.post(CHAT, json=chat_body(**asked)).json()["choices"]
        streamed = [
            chunk["choices"][0] for chunk in chunks(client.post(CHAT, json=chat_body(stream=True, **asked)))
        ]
    assert [choice["delta"].get("role") for choice in streamed[:2]] == ["assistant", None]
    assert [choice["delta"].get("content") for choice in streamed] == ["你", "好", "!", None]
    assert [choice["finish_reason"] for choice in streamed] == [None, None, None, "stop"]
    entries = [entry for choice in streamed[:-1] for entry in choice["logprobs"]["content"]]
    assert entries == whole["logprobs"]["content"]
    assert [entry["bytes"] for entry in entries] == [[byte] for byte in "你好!".encode()]
    assert entries[-1]["top_logprobs"] == [{"token": "!", "logprob": entries[-1]["logprob"], "bytes": [33]}]


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_stream_counts_tokens_in_one_more_chunk_when_asked(is_asked: bool) -> None:
    body = chat_body(stream=True, stream_options={"include_usage": is_asked})
    with served(scripted_engine("ok")) as client:
        *others, last = chunks(client.post(CHAT, json=body))
    assert all(chunk["usage"] is None for chunk in others)
    assert (last["choices"] == []) is is_asked
    assert (last["usage"] is not None) is is_asked


def test_each_of_several_answers_has_a_seed_of_its_own_and_repeats() -> None:
    body = chat_body(n=3, seed=-5, temperature=1, max_tokens=4)
    with served(HistoryEngine(VOCABULARY)) as client:
        first, second = (client.post(CHAT, json=body).json() for _ in range(2))
        streamed = chunks(client.post(CHAT, json={**body, "stream": True}))
    texts = [choice["message"]["content"] for choice in first["choices"]]
    assert len(set(texts)) == 3
    assert texts == [choice["message"]["content"] for choice in second["choices"]]
    for index, text in enumerate(texts):
        choices = [chunk["choices"][0] for chunk in streamed]
        pieces = [choice["delta"].get("content", "") for choice in choices if choice["index"] == index]
        assert "".join(pieces) == text
    assert first["usage"]["prompt_tokens"] == 4


def test_what_was_said_before_is_not_computed_again() -> None:
    with served(scripted_engine("a", "b")) as client:
        client.post(CHAT, json=chat_body("hello"))
        usage = client.post(CHAT, json=chat_body("hello")).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"] - 1


def test_the_model_reads_all_messages_in_their_roles() -> None:
    engine = scripted_engine("ok")
    messages = [
        {"role": "developer", "content": "S"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]
    with served(engine) as client:
        response = client.post(CHAT, json={"model": MODEL, "messages": messages})
    assert response.status_code == 200
    assert engine.fed[0] == [*b"S", 257, *b"ab", 258, *b"c", 257, *b"d", 258]


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"temperature": "hot"}, 422, "temperature"),
        ({"temperature": 3}, 422, "temperature"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"max_tokens": True}, 422, "max_tokens"),
        ({"n": 129}, 422, "n"),
        ({"web_search_options": {"user_location": 1}}, 400, "web_search_options"),
        ({"modalities": ["text", "audio"]}, 400, "modalities"),
        ({"guided_regex": "a+"}, 400, "guided_regex"),
        ({"logit_bias": {"300": 1}}, 400, "logit_bias"),
        ({"min_tokens": 33}, 400, None),
        ({"stop": ["x"] * 17}, 422, "stop"),
        ({"messages": []}, 422, "messages"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, 422, "messages"),
        ({"max_tokens": 1, "max_completion_tokens": 2}, 400, "max_tokens"),
        ({"top_logprobs": 2}, 400, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, 400, "logit_bias"),
        ({"logit_bias": {"9" * 5000: 1}}, 400, "logit_bias"),
        ({"stop": ""}, 400, None),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    fields: dict[str, object], status: int, param: str | None
) -> None:
    with served(scripted_engine()) as client:
        response = client.post(CHAT, json=chat_body(**fields))
    assert error(response)[:2] == (status, param)


@pytest.mark.parametrize("is_stream", [False, True])
def test_another_model_is_not_found(is_stream: bool) -> None:
    with served(scripted_engine()) as client:
        response = client.post(CHAT, json=chat_body(model="gpt-4", stream=is_stream))
    assert error(response) == (404, "model", "model_not_found")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_prompt_beyond_the_context_is_refused_whole(is_stream: bool) -> None:
    with served(scripted_engine(max_context=16)) as client:
        response = client.post(CHAT, json=chat_body("x" * 20, stream=is_stream))
    assert error(response) == (400, "messages", "context_length_exceeded")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_fault_before_the_first_token_is_an_error_and_the_server_goes_on(is_stream: bool) -> None:
    engine = scripted_engine("ok")
    engine.fail_after = 0
    with served(engine) as client:
        failed = client.post(CHAT, json=chat_body(stream=is_stream))
        assert client.get("/health/ready").json() == {"status": "faulty"}
        engine.fail_after = None
        answer = client.post(CHAT, json=chat_body()).json()
        assert client.get("/health/ready").json() == {"status": "ok"}
    if is_stream:  # its status was sent when the request was taken
        assert (failed.status_code, failed.text[:7], failed.text[-2:]) == (200, "data: {", "\n\n")
        assert json.loads(failed.text.removeprefix("data: "))["error"]["code"] == "engine_failed"
    else:
        assert error(failed) == (500, None, "engine_failed")
    assert answer["choices"][0]["message"]["content"] == "ok"


def test_a_fault_in_a_stream_is_its_last_event_and_no_text() -> None:
    engine = scripted_engine("hello")
    engine.fail_after = 2
    with served(engine) as client:
        response = client.post(CHAT, json=chat_body(stream=True))
    *_, last, rest = response.text.split("\n\n")
    assert rest == ""
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_full_queue_says_when_to_come_back(is_stream: bool) -> None:
    engine = HeldEngine()
    settings = SchedulerSettings(max_running=1, max_waiting=1)
    with running_service(engine, settings) as service, TestClient(create_app(service)) as client:
        service.submit([request(b"a"), request(b"b")])
        response = client.post(CHAT, json=chat_body(stream=is_stream))
        engine.may_go_on.set()
    assert error(response) == (429, None, "queue_full")
    assert int(response.headers["retry-after"]) >= 1


def test_more_answers_than_the_queue_ever_holds_are_refused_for_good() -> None:
    # It was 429, so that OpenAI's client tried again for nothing.
    settings = SchedulerSettings(max_running=1, max_waiting=1)
    with served(HistoryEngine(VOCABULARY), settings=settings) as client:
        response = client.post(CHAT, json=chat_body(n=3))
        assert client.post(CHAT, json=chat_body(n=2, max_tokens=1)).status_code == 200
    assert response.status_code == 400


def test_an_answer_that_is_late_is_unavailable() -> None:
    with served(scripted_engine("ok"), timeout_s=0) as client:
        response = client.post(CHAT, json=chat_body())
    assert error(response) == (503, None, "unavailable")
