"""Schemas that take long to compile keep neither other requests nor the work of clients that left."""

import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from baichuan2_tpu.generate.grammar.trial import TrialLimits
from baichuan2_tpu.server import service as service_module
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.service import Service
from doubles.fakes import ByteTokenizer, HistoryEngine
from running.served import MODEL, chat_body, listening, running_service

CHAT = "/v1/chat/completions"
USUAL = {"type": "object", "properties": {"a": {"const": "b"}}, "required": ["a"]}
HOURS = TrialLimits(quick_s=0.05, processor_s=3600, memory_bytes=4 << 30)
"""Limits that an endless schema does not reach in a test."""


def schema_body(schema: dict[str, object]) -> dict[str, object]:
    named = {"name": "a", "schema": schema}
    return chat_body(response_format={"type": "json_schema", "json_schema": named}, max_tokens=4)


def asks(schema: dict[str, object]) -> dict[str, object]:
    """Return requests by their paths that need a schema compiled."""
    response = {
        "model": MODEL,
        "input": "a",
        "text": {"format": {"type": "json_schema", "name": "a", "schema": schema}},
    }
    return {CHAT: schema_body(schema), "/v1/responses": response}


def endless(number: int) -> dict[str, object]:
    return {"type": "integer", "multipleOf": 4999999 + 2 * number}


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Generator[tuple[Service, httpx.Client], None, None]:
    monkeypatch.setattr(service_module, "TrialLimits", lambda: HOURS)
    with (
        running_service(HistoryEngine(ByteTokenizer().vocabulary_size, max_context=256)) as service,
        listening(create_app(service)) as url,
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        service.warm_up()
        try:
            yield service, client
        finally:
            service.close()


@pytest.mark.parametrize("path", [CHAT, "/v1/responses"])
def test_a_schema_is_compiled_no_longer_than_its_client_waits(
    place: tuple[Service, httpx.Client], path: str
) -> None:
    # The work went on after the client had left; later only that of a response did.
    service, client = place
    with pytest.raises(httpx.ReadTimeout):
        client.post(path, json=asks(endless(0))[path], timeout=1)
    trial = service.grammars._trial
    assert trial is not None
    queues = [queue for queue, _ in trial._queues]
    while any(queue._is_taken or queue._waiting for queue in queues):
        time.sleep(0.01)  # the server hears of it through a socket
    assert client.post(CHAT, json=schema_body(USUAL)).status_code == 200


def test_forty_five_costly_schemas_starve_nobody(place: tuple[Service, httpx.Client]) -> None:
    # 45 such requests took every thread, and /health/ready said ok to what nobody could use.
    _, client = place

    def ask(number: int) -> int:
        with suppress(httpx.HTTPError):
            return client.post(CHAT, json=schema_body(endless(number))).status_code
        return 0

    with ThreadPoolExecutor(45) as pool:
        asking = [pool.submit(ask, number) for number in range(45)]
        assert client.post(CHAT, json=chat_body(max_tokens=1)).status_code == 200
        while sum(each.done() for each in asking) < 41:
            assert client.get("/health/ready").json() == {"status": "ok"}
        assert client.post(CHAT, json=schema_body(USUAL)).status_code == 200
        assert sum(not each.done() for each in asking) == 4
        place[0].close()
    assert sorted({each.result() for each in asking}) == [429, 503]
