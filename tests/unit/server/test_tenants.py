"""What one key's holder asks is not seen in another's counts, over the API and on the page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from typing import Any

import pytest
from starlette.testclient import TestClient

from baichuan2_tpu.server.app import ServerOptions, create_app
from baichuan2_tpu.server.page import gradio_app
from baichuan2_tpu.server.page.gradio_app import add_page
from baichuan2_tpu.server.page.turns import Asker, PageSession
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.server.tenants import ShareRule, tenant_of
from doubles.fakes import ByteTokenizer, HistoryEngine
from doubles.talking_engine import TalkingEngine
from running.served import chat_body, running_service, served

KEYS = frozenset({"red", "blue"})
TEXT = "the same long question of everybody, with the same words"


def cached_tokens(client: TestClient, key: str | None, **fields: Any) -> int:
    """Ask the same question and return how many of its tokens were held already."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = chat_body(TEXT, max_tokens=1, **fields)
    usage = client.post("/v1/chat/completions", json=body, headers=headers).json()["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"]


def engine() -> HistoryEngine:
    return HistoryEngine(ByteTokenizer().vocabulary_size, max_context=256)


def test_a_key_shares_with_itself_alone_whatever_name_the_client_gives() -> None:
    # The counts of an answer told one key's holder what another had asked, token by token.
    with served(engine(), ServerOptions(KEYS)) as client:
        assert cached_tokens(client, "red", user="me") == 0
        assert cached_tokens(client, "blue", user="me") == 0
        assert cached_tokens(client, "red", user="another") == len(TEXT) + 1


@pytest.mark.parametrize(
    ("options", "keys"),
    [(ServerOptions(KEYS, share_prefixes="all"), ("red", "blue")), (ServerOptions(), (None, None))],
)
def test_all_share_where_that_is_wished_or_nobody_has_a_key(
    options: ServerOptions, keys: tuple[str | None, str | None]
) -> None:
    with served(engine(), options) as client:
        assert cached_tokens(client, keys[0]) == 0
        assert cached_tokens(client, keys[1]) == len(TEXT) + 1


def test_a_tenant_does_not_reveal_its_key() -> None:
    assert tenant_of("red", "key") == tenant_of("red", "key") != tenant_of("blue", "key")
    assert "red" not in tenant_of("red", "key")
    assert tenant_of("red", "all") == tenant_of("blue", "all") == ""


@pytest.mark.parametrize("share", ["key", "all"])
def test_a_stored_response_is_its_keys_whoever_shares_beginnings(share: ShareRule) -> None:
    def ask(key: str, method: str, path: str, **body: object) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {key}"}
        response = client.request(method, f"/v1/responses{path}", json=body or None, headers=headers)
        return response.status_code, response.json()

    def same(error: Any, name: str, other: str) -> object:
        return {**error, "message": error["message"].replace(name, other)}

    with served(engine(), ServerOptions(KEYS, share_prefixes=share)) as client:
        stored = ask("red", "POST", "", input="secret", max_output_tokens=2)[1]
        unknown = "resp_unknown"
        for method, tail in (("GET", ""), ("DELETE", ""), ("GET", "/input_items")):
            theirs = ask("blue", method, f"/{stored['id']}{tail}")
            nobodys = ask("blue", method, f"/{unknown}{tail}")
            assert theirs[0] == nobodys[0] == 404
            assert same(theirs[1]["error"], stored["id"], unknown) == nobodys[1]["error"]
        for field in ("previous_response_id", "input"):
            item_id = stored["output"][0]["id"]
            reference: Any = [{"type": "item_reference", "id": item_id}]
            body = {"input": reference} if field == "input" else {"input": "a", field: stored["id"]}
            status, refused = ask("blue", "POST", "", **body)
            assert (status, refused["error"]["param"]) == (400, field)
            assert "is not stored" in refused["error"]["message"]
        assert ask("red", "GET", f"/{stored['id']}") == (200, stored)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Gradio counts events with pandas
@pytest.mark.parametrize("share", ["key", "all"])
def test_a_turn_on_the_page_is_its_keys(monkeypatch: pytest.MonkeyPatch, share: ShareRule) -> None:
    askers: list[Asker] = []

    async def answer(
        _service: Service, _session: PageSession, _turn: object, asker: Asker, _is_heard: object
    ) -> AsyncGenerator[Mapping[str, object], None]:
        askers.append(asker)
        yield {}

    monkeypatch.setattr(gradio_app, "answer_turn", answer)
    settings = {"system": "", "temperature": 0, "top_k": 1, "top_p": 1, "min_p": 0}
    settings |= {"repetition_penalty": 1, "max_tokens": 4, "seed": 1}
    turn = {"id": "t", "messages": [{"role": "user", "content": "hi"}], "settings": settings}
    with running_service(TalkingEngine()) as service:
        options = ServerOptions(KEYS, share_prefixes=share)
        app = create_app(service, options)
        add_page(app, service, options)
        with TestClient(app) as client:
            client.post("/sign-in", data={"key": "blue"})
            functions = client.get("/config").json()["dependencies"]
            index = next(each["id"] for each in functions if each["api_name"] == "answer")
            event = {"session_hash": "s1", "fn_index": index, "data": [turn, None]}
            assert client.post("/gradio_api/queue/join", json=event).status_code == 200
            with client.stream("GET", "/gradio_api/queue/data?session_hash=s1") as stream:
                next(line for line in stream.iter_lines() if "process_completed" in line)
    assert askers == [Asker("testclient", tenant_of("blue", share))]
