"""Models, tokens, health, metrics and the description: what is known without computing anything."""

import re

import pytest
from starlette.testclient import TestClient

from baichuan2_tpu.engine.base import RowUse
from baichuan2_tpu.server.app import create_app
from doubles.fakes import ByteTokenizer, HistoryEngine
from running.served import MODEL, chat_body, running_service, scripted_engine, served


def test_the_model_is_listed_and_shown_by_its_name() -> None:
    with served(scripted_engine()) as client:
        (listed,) = client.get("/v1/models").json()["data"]
        assert client.get(f"/v1/models/{MODEL}").json() == listed
        assert client.get("/v1/models/other/model").json()["error"]["code"] == "model_not_found"
    assert (listed["id"], listed["max_model_len"]) == (MODEL, 256)


def test_an_unknown_model_is_named_in_short() -> None:
    # A name of 100,000 characters came back whole.
    with served(scripted_engine()) as client:
        error = client.post("/detokenize", json={"model": "x\n" * 50_000, "tokens": []}).json()["error"]
    assert error["code"] == "model_not_found"
    assert error["message"].isprintable()
    assert len(error["message"]) < 200


def test_text_becomes_tokens_and_text_again() -> None:
    with served(scripted_engine()) as client:
        tokens = client.post("/tokenize", json={"prompt": "你"}).json()
        text = client.post("/detokenize", json={"tokens": tokens["tokens"]}).json()
    assert tokens == {"tokens": list("你".encode()), "count": 3, "max_model_len": 256}
    assert text == {"prompt": "你"}


def test_the_tokenizer_names_no_token_that_text_could_not_become() -> None:
    with served(scripted_engine()) as client:
        info = client.get("/tokenizer_info").json()
    assert (info["tokenizer_class"], info["vocab_size"]) == ("ByteTokenizer", 259)
    assert info["bos_token"] is info["eos_token"] is None


def test_a_chat_becomes_the_tokens_the_model_reads() -> None:
    with served(scripted_engine()) as client:
        tokens = client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    assert tokens["tokens"] == [257, 97, 258]


@pytest.mark.parametrize("body", [{}, {"prompt": "a", "messages": [{"role": "user", "content": "a"}]}])
def test_tokens_are_asked_for_a_text_or_a_chat(body: dict[str, object]) -> None:
    with served(scripted_engine()) as client:
        assert client.post("/tokenize", json=body).status_code == 400


def test_tokens_outside_the_vocabulary_have_no_text() -> None:
    with served(scripted_engine()) as client:
        response = client.post("/detokenize", json={"tokens": [10**9]})
    assert response.status_code == 400
    assert "vocabulary" in response.json()["error"]["message"]


def test_a_server_that_stops_lives_and_is_not_ready() -> None:
    with running_service(scripted_engine()) as service, TestClient(create_app(service)) as client:
        service.stop(0)
        assert client.get("/health/live").json() == {"status": "ok"}
        for path in ("/health", "/health/ready"):
            response = client.get(path)
            assert (response.status_code, response.json()) == (503, {"status": "stopping"})
        refused = client.post("/v1/chat/completions", json=chat_body())
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")


def test_metrics_count_what_was_served() -> None:
    with served(scripted_engine("abc", "abc")) as client:
        for _ in range(2):
            client.post("/v1/chat/completions", json=chat_body("hello"))
        text = client.get("/metrics").text
    values = dict(re.findall(r"^(baichuan2_\S+) (\S+)$", text, re.MULTILINE))
    assert values["baichuan2_generated_tokens_total"] == "6.0"
    assert values["baichuan2_prompt_tokens_total"] == "14.0"
    assert values["baichuan2_prompt_tokens_reused_total"] == "6.0"
    assert values["baichuan2_prompt_tokens_computed_total"] == "8.0"
    assert values['baichuan2_requests_total{outcome="finished"}'] == "2.0"
    assert values["baichuan2_first_token_seconds_count"] == "2.0"
    assert values["baichuan2_token_seconds_count"] == "4.0"
    states = [values[f"baichuan2_requests_{state}"] for state in ("running", "reading", "waiting")]
    assert states == ["0.0", "0.0", "0.0"]


class RowEngine(HistoryEngine):
    @property
    def row_use(self) -> RowUse:
        return RowUse(total=512, used=40, shared=8)


def test_metrics_tell_the_rows_that_sequences_share_where_they_do() -> None:
    vocabulary = ByteTokenizer().vocabulary_size
    with served(RowEngine(vocabulary)) as client:
        rows = re.findall(r"^baichuan2_(history_rows\S*) (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert rows == [("history_rows", "512.0"), ("history_rows_used", "40.0"), ("history_rows_shared", "8.0")]
    with served(HistoryEngine(vocabulary)) as client:
        assert "history_rows" not in client.get("/metrics").text


def test_the_description_needs_no_network_and_no_page_does() -> None:
    with served(HistoryEngine(ByteTokenizer().vocabulary_size)) as client:
        description = client.get("/openapi.json").text
        assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    assert "http" not in description.replace('"HTTPBearer"', "")


def test_an_unknown_path_or_method_is_an_error_object() -> None:
    with served(scripted_engine()) as client:
        assert client.get("/v1/nothing").json()["error"]["code"] == "not_found"
        response = client.get("/v1/completions")
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
