"""A server is ready when every part of it works now, and a part that hangs or fails is named."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event

import numpy as np
import pytest
from numpy.typing import NDArray
from starlette.testclient import TestClient

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.readiness import Readiness
from baichuan2_tpu.server.transport import routes_operations
from doubles.fakes import ByteTokenizer, HistoryEngine
from running.served import chat_body, running_service, served
from schedules.serving import Clock

VOCABULARY = ByteTokenizer().vocabulary_size


def works() -> None:
    """Do nothing, as a part that works."""


def fails() -> None:
    raise OSError("no more memory")


def test_what_works_is_tried_once_as_long_as_that_is_fresh() -> None:
    uses: list[int] = []
    clock = Clock()
    readiness = Readiness({"a": lambda: uses.append(1)}, clock_s=clock)
    for clock.now_s in (0, 1, 9.9, 10, 15, 20):
        assert readiness.begin().wait(60)
        assert readiness.broken_part is None
    assert len(uses) == 3


def test_a_part_that_fails_is_named_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    parts = {"a": works, "b": fails, "c": works}
    readiness = Readiness(parts, clock_s=clock)
    assert readiness.begin().wait(60)
    assert readiness.broken_part == "b"
    assert caplog.messages == ["the b does not work: no more memory"]
    parts["b"] = works
    clock.now_s = 10
    assert readiness.begin().wait(60)
    assert readiness.broken_part is None


def test_a_part_that_hangs_is_named_after_the_bound_and_nothing_is_begun_beside_it() -> None:
    clock = Clock()
    is_tried, goes_on = Event(), Event()

    def hang() -> None:
        is_tried.set()
        goes_on.wait()

    readiness = Readiness({"a": works, "b": hang}, clock_s=clock)
    done = readiness.begin()
    assert is_tried.wait(60)
    assert readiness.broken_part is None
    clock.now_s = 30
    assert readiness.broken_part == "b"
    assert readiness.begin() is done
    goes_on.set()
    assert done.wait(60)
    assert readiness.broken_part is None


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
def test_an_idle_engine_is_used_before_it_is_called_ready(path: str) -> None:
    # Ready was what had not failed at the last request, which could be long ago.
    engine = HistoryEngine(VOCABULARY)
    with served(engine) as client:
        assert client.get(path).json() == {"status": "ok"}
        assert client.get(path).json() == {"status": "ok"}
        assert engine.fed == [[0]]
    assert engine.open_sequences == 0


def test_an_engine_that_fails_is_found_before_a_request_meets_it() -> None:
    engine = HistoryEngine(VOCABULARY)
    engine.fail_after = 0
    with served(engine) as client:
        response = client.get("/health")
    assert (response.status_code, response.json()) == (503, {"status": "faulty"})


def test_an_engine_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class HangingEngine(HistoryEngine):
        goes_on = Event()

        def forward(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
            self.goes_on.wait()
            return super().forward(chunks)

    monkeypatch.setattr(routes_operations, "_WAIT_S", 0.05)
    engine = HangingEngine(VOCABULARY)
    clock = Clock()
    with running_service(engine) as service, TestClient(create_app(service)) as client:
        monkeypatch.setattr(service.readiness, "_clock_s", clock)
        assert client.get("/health").json() == {"status": "ok"}
        clock.now_s = 30
        assert client.get("/health").json() == {"status": "faulty"}
        engine.goes_on.set()
        assert service.readiness.begin().wait(60)
        assert client.get("/health").json() == {"status": "ok"}


def test_kept_conversations_make_room_for_the_proof() -> None:
    engine = HistoryEngine(VOCABULARY, max_context=256, max_sequences=1)
    with served(engine) as client:
        assert client.post("/v1/chat/completions", json=chat_body()).status_code == 200
        assert client.get("/health").json() == {"status": "ok"}


def test_schemas_are_tried_once_some_were_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with running_service(HistoryEngine(VOCABULARY)) as service:
        monkeypatch.setattr(service.readiness, "_clock_s", clock)
        service.warm_up()
        assert service.readiness.begin().wait(60)
        assert service.health == "ok"
        service.grammars.close()
        clock.now_s = 10
        assert service.readiness.begin().wait(60)
        assert (service.health, service.readiness.broken_part) == ("faulty", "compiler of schemas")
        service.stop(0)
