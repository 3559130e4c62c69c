"""Damaged bodies of every interface are answered or refused in words, and the server continues."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from httpx2 import Response
from numpy.typing import NDArray
from starlette.testclient import TestClient

from doubles.fakes import ByteTokenizer, HistoryEngine, one_hot
from fuzz.mutations import mutate
from running.served import MODEL, served

INPUTS = 100
LONGEST_MESSAGE = 1500
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 9}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "…", "parameters": SCHEMA, "strict": True}
SETTINGS = {"temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "user": "me", "logit_bias": {"5": 1}}
BODIES: dict[str, Sequence[dict[str, object]]] = {
    "/v1/chat/completions": (
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "stream": True, **SETTINGS},
        {
            "messages": [
                {"role": "system", "content": "S"},
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "b"},
            ],
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": "auto",
            "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}},
            "n": 2,
        },
    ),
    "/v1/completions": ({"prompt": "a", "echo": True, "logprobs": 2, "max_tokens": 3, **SETTINGS},),
    "/v1/responses": (
        {"input": "hi", "stream": True, "previous_response_id": "STORED", "instructions": "S", **SETTINGS},
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "output_text"}]},
                {"type": "function_call", "id": "fc", "call_id": "1", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "1", "output": "b"},
                {"type": "item_reference", "id": "ITEM"},
            ],
            "tools": [{"type": "function", **FUNCTION}],
            "tool_choice": {
                "type": "allowed_tools",
                "mode": "auto",
                "tools": [{"type": "function", "name": "get_weather"}],
            },
            "text": {"format": {"type": "json_schema", "name": "n", "schema": SCHEMA}, "verbosity": "low"},
            "metadata": {"a": "b"},
            "include": ["message.output_text.logprobs"],
            "truncation": "auto",
            "store": True,
            "max_output_tokens": 9,
        },
    ),
    "/tokenize": ({"prompt": "a"}, {"messages": [{"role": "user", "content": "a"}]}),
    "/detokenize": ({"tokens": [1, 2]},),
}


class BriefEngine(HistoryEngine):
    """Ends every answer at once, however many tokens were asked for."""

    def logits(self, ids: object) -> NDArray[np.float32]:
        return one_hot(ByteTokenizer.END_ID, self.config.vocabulary_size)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with served(BriefEngine(ByteTokenizer().vocabulary_size, max_context=4096)) as client:
        yield client


@pytest.mark.parametrize("path", BODIES)
def test_a_damaged_body_is_answered_or_refused_in_words(client: TestClient, path: str) -> None:
    source = random.Random(1)
    stored = client.post("/v1/responses", json={"input": "hi"}).json()
    names = {"STORED": stored["id"], "ITEM": stored["output"][0]["id"]}
    whole = [json.dumps({"model": MODEL, **body}) for body in BODIES[path]]
    for name, stored_id in names.items():
        whole = [body.replace(name, stored_id) for body in whole]
    for body in whole:
        assert client.post(path, content=body.encode()).status_code == 200
        for _ in range(INPUTS):
            damaged = mutate(body.encode(), source)
            check(client.post(path, content=damaged), damaged)
        assert client.post(path, content=body.encode()).status_code == 200


def check(response: Response, body: bytes) -> None:
    """Check that a response is an answer, or an error object that blames the request and reads well."""
    assert response.status_code in (200, 400, 404, 413, 422), (
        response.status_code,
        response.text,
        body[:500],
    )
    if response.status_code == 200:
        return
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < LONGEST_MESSAGE, error["message"][:500]
    assert error["message"].isprintable(), error["message"]
