"""Log lines can be read by machines, hold no message text, and cannot be forged by clients."""

import json
import logging

import pytest
from starlette.testclient import TestClient

from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.log_lines import LineFormatter, log_event
from baichuan2_tpu.server.transport.request_log import RequestLog
from running.served import chat_body, running_service, scripted_engine

LOGGER = logging.getLogger("baichuan2_tpu.server.transport.request_log")


@pytest.fixture(autouse=True)
def _every_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="baichuan2_tpu")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the command would have written."""
    return [LineFormatter("text").format(record) for record in caplog.records]


def test_fields_follow_the_event_and_are_quoted_where_they_must(caplog: pytest.LogCaptureFixture) -> None:
    log_event(LOGGER, "an event", count=3, is_whole=True, path='a "b"\nc=d\x1b[31m', nothing=None)
    line = lines(caplog)[0]
    assert line.endswith(' event="an event" count=3 is_whole=true path="a \\"b\\"\\nc=d\\u001b[31m"')
    assert line.startswith("time=2")
    assert " level=info " in line


def test_json_lines_hold_the_same_fields(caplog: pytest.LogCaptureFixture) -> None:
    log_event(LOGGER, "event", level=logging.WARNING, count=3, text="你好\n")
    line = LineFormatter("json").format(caplog.records[0])
    assert "\n" not in line
    fields = json.loads(line)
    assert (fields["level"], fields["event"], fields["count"], fields["text"]) == (
        "warning",
        "event",
        3,
        "你好\n",
    )
    assert "request" not in fields


def test_a_traceback_is_part_of_its_line(caplog: pytest.LogCaptureFixture) -> None:
    try:
        int("wrong")
    except ValueError:
        LOGGER.exception("it failed at %d", 5)
    line = lines(caplog)[0]
    assert 'event="it failed at 5" traceback="Traceback' in line
    assert "\n" not in line


def test_every_request_is_a_line_with_the_id_its_client_got(caplog: pytest.LogCaptureFixture) -> None:
    with (
        running_service(scripted_engine("a secret answer")) as service,
        TestClient(RequestLog(create_app(service))) as client,
    ):
        answer = client.post("/v1/chat/completions?q=secret", json=chat_body("a secret question"))
        missing = client.get("/nowhere%0Alevel=error")
    assert answer.json()["choices"][0]["message"]["content"] == "a secret answer"
    own = [record for record in caplog.records if record.name.startswith("baichuan2_tpu.server")]
    assert [record.getMessage() for record in own] == ["start", "answer", "request", "request"]
    started, answered, asked, lost = [getattr(record, "fields", {}) for record in own]
    assert (started["path"], started["answers"]) == ("/v1/chat/completions", 1)
    assert started["prompt_tokens"] == answered["prompt_tokens"]
    assert answered["finish_reason"] == "stop"
    assert answered["generated_tokens"] == len("a secret answer")
    assert answered["prompt_tokens"] > len("a secret question")
    assert (asked["method"], asked["path"], asked["status"]) == ("POST", "/v1/chat/completions", 200)
    assert asked["whole"]
    assert lost["status"] == missing.status_code == 404
    assert all("\n" not in line for line in lines(caplog))
    assert answer.headers["x-request-id"].startswith("req-")
    assert not [line for line in lines(caplog) if "secret" in line]


def test_a_path_without_end_is_cut_in_its_line(caplog: pytest.LogCaptureFixture) -> None:
    with (
        running_service(scripted_engine()) as service,
        TestClient(RequestLog(create_app(service))) as client,
    ):
        client.get("/" + "a" * 10_000)
    (line,) = lines(caplog)
    assert "path=/" + "a" * 199 + " status=404" in line


def test_what_supervisors_ask_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    with (
        running_service(scripted_engine()) as service,
        TestClient(RequestLog(create_app(service))) as client,
    ):
        assert client.get("/health/live").status_code == 200
    levels = [record.levelno for record in caplog.records if record.name.startswith("baichuan2_tpu.server")]
    assert levels == [logging.DEBUG]
