"""Nobody waits in silence: heads go out at once, and something follows while a prompt waits or is read."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import httpx2
import openai
import pytest

from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.scheduling.load import SchedulerSettings
from doubles.gated_engine import GatedEngine
from running.served import MODEL, chat_body, listening, running_service, served

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
BODIES = {CHAT: chat_body("x" * 40), COMPLETIONS: {"model": MODEL, "prompt": "x" * 42, "max_tokens": 2}}
KEPT_ALIVE = {"X-Keep-Alive": "true"}


@pytest.fixture(autouse=True)
def short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baichuan2_tpu.server.api.live_response._QUIET_S", 0.02)


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    engine = GatedEngine(256, prompt_piece=16)
    yield engine
    engine.gate.release(1000)


@contextmanager
def live(engine: GatedEngine, *, max_running: int = 4) -> Generator[httpx2.Client, None, None]:
    """Serve an engine on a port, to a client that reads a response while it comes."""
    with (
        running_service(engine, SchedulerSettings(max_running)) as service,
        listening(create_app(service)) as url,
        httpx2.Client(base_url=url, timeout=20) as client,
    ):
        try:
            yield client
        finally:
            engine.gate.release(1000)


def wait_for(lines: Iterator[str], wanted: str) -> None:
    """Read lines up to one that is the wanted one; before it there are only comments."""
    for line in lines:
        if line == wanted:
            return
        assert line == "" or line.startswith(": "), f"{line!r} came before {wanted!r}"
    pytest.fail(f"{wanted!r} never came")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_stream_tells_how_much_of_its_prompt_is_read(engine: GatedEngine, path: str) -> None:
    # The head waited for the first token, so that proxies gave up on a long prompt.
    body = BODIES[path] | {"stream": True, "max_tokens": 2}
    with live(engine) as client, client.stream("POST", path, json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        wait_for(lines, ": reading 0 of 42")
        engine.gate.release()
        wait_for(lines, ": reading 16 of 42")
        engine.gate.release()
        wait_for(lines, ": reading 32 of 42")
        engine.gate.release(1000)
        rest = list(lines)
    assert [line for line in rest if line.startswith("data: ")][-1] == "data: [DONE]"


def test_a_stream_that_waits_for_its_turn_says_so(engine: GatedEngine) -> None:
    body = BODIES[CHAT] | {"stream": True}
    with live(engine, max_running=1) as client, client.stream("POST", CHAT, json=body) as first:
        wait_for(first.iter_lines(), ": reading 0 of 42")
        with client.stream("POST", CHAT, json=body) as second:
            wait_for(second.iter_lines(), ": waiting")


def test_a_stream_without_a_new_token_for_a_while_says_that_it_is_written(engine: GatedEngine) -> None:
    engine.gate.release(3)
    with (
        live(engine) as client,
        client.stream("POST", CHAT, json=BODIES[CHAT] | {"stream": True}) as response,
    ):
        assert any(line == ": writing" for line in response.iter_lines())


def test_answers_side_by_side_are_told_of_together(engine: GatedEngine) -> None:
    body = {"model": MODEL, "prompt": ["x" * 40, "y" * 20], "max_tokens": 2, "stream": True}
    with live(engine) as client, client.stream("POST", COMPLETIONS, json=body) as response:
        wait_for(response.iter_lines(), ": reading 0 of 60")


def test_openai_reads_past_the_comments_and_raises_a_late_fault(engine: GatedEngine) -> None:
    with live(engine) as client, openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="none") as own:
        stream = own.completions.create(model=MODEL, prompt="x" * 40, max_tokens=2, stream=True)
        engine.gate.release(1000)
        assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        engine.fail_after = 0
        late = own.completions.create(model=MODEL, prompt="y" * 40, max_tokens=2, stream=True)
        with pytest.raises(openai.APIError, match="the engine was told to fail"):
            list(late)


def test_metrics_count_prompts_while_they_are_read(engine: GatedEngine) -> None:
    with (
        live(engine) as client,
        client.stream("POST", CHAT, json=BODIES[CHAT] | {"stream": True}) as response,
    ):
        lines = response.iter_lines()
        engine.gate.release()
        wait_for(lines, ": reading 16 of 42")
        values = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
        assert values["baichuan2_prompt_tokens_computed_total"] == "16.0"
        assert (values["baichuan2_requests_running"], values["baichuan2_requests_reading"]) == ("1.0", "1.0")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_a_whole_answer_is_kept_alive_by_white_space_when_asked(engine: GatedEngine, path: str) -> None:
    body = BODIES[path] | {"max_tokens": 2}
    with live(engine) as client, client.stream("POST", path, json=body, headers=KEPT_ALIVE) as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        pieces = response.iter_bytes()
        assert next(pieces) == b"\n"
        engine.gate.release(1000)
        answer = json.loads(b"".join(pieces))
    assert answer["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("headers", [{}, {"X-Keep-Alive": "false"}])
def test_a_whole_answer_is_not_kept_alive_unasked(engine: GatedEngine, headers: dict[str, str]) -> None:
    engine.gate.release(1000)
    with served(engine) as client:
        response = client.post(CHAT, json=BODIES[CHAT] | {"max_tokens": 2}, headers=headers)
    assert response.text.startswith("{")
    assert "content-length" in response.headers


def test_a_fault_of_an_answer_that_is_kept_alive_is_an_error_object(engine: GatedEngine) -> None:
    engine.gate.release(1000)
    engine.fail_after = 0
    with served(engine) as client:
        response = client.post(CHAT, json=BODIES[CHAT], headers=KEPT_ALIVE)
    assert response.status_code == 200
    assert response.json()["error"]["code"] == "engine_failed"


@pytest.mark.parametrize("asked", [{"stream": True}, {}])
def test_what_is_wrong_with_a_request_is_no_late_fault(engine: GatedEngine, asked: dict[str, bool]) -> None:
    with served(engine) as client:
        for wrong in ({"max_tokens": -5}, {"messages": [{"role": "user", "content": "x" * 300}]}):
            response = client.post(CHAT, json=BODIES[CHAT] | asked | wrong, headers=KEPT_ALIVE)
            assert response.status_code in (400, 422)
            assert response.json()["error"]["message"]


def test_another_value_of_the_header_is_refused(engine: GatedEngine) -> None:
    with served(engine) as client:
        response = client.post(CHAT, json=BODIES[CHAT], headers={"X-Keep-Alive": "5 s"})
    assert response.status_code == 400
    assert response.json()["error"]["message"] == "the header x-keep-alive is '5 s'; true or false is allowed"
