"""How much a request's faults cost: what is wrong in a million places is told as what is wrong in one."""

from typing import Any

import pytest
from pydantic import ValidationError

from baichuan2_tpu.server.api.schema import DetokenizeRequest, Input
from baichuan2_tpu.server.api.schema_chat import ChatRequest, ChatTokenizeRequest
from baichuan2_tpu.server.api.schema_completion import CompletionRequest
from baichuan2_tpu.server.page.turns import Turn

MANY = 10_000
NAMES: dict[str, Any] = {f"name {index}": {} for index in range(MANY)}
SAID = [{"role": "user", "content": "hi"}]

# Four MB of faults took 20 seconds of the event loop and 2 GB, since pydantic tells every one of them.
FAULTS: list[tuple[type[Input], dict[str, Any]]] = [
    (ChatRequest, {"messages": [{}] * MANY}),
    (ChatRequest, {"messages": [{"role": "user", "content": 1}] * MANY}),
    (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}),
    (ChatRequest, {"messages": [{"role": "assistant", "tool_calls": [{}] * MANY}]}),
    (ChatRequest, {"messages": [{**SAID[0], **NAMES}]}),
    (ChatRequest, {"messages": SAID, "logit_bias": NAMES}),
    (ChatRequest, {"messages": SAID, "stop_token_ids": [""] * MANY}),
    (ChatRequest, {"messages": SAID, "stop": [1] * MANY}),
    (ChatRequest, {"messages": SAID, "tools": [1] * MANY}),
    (ChatRequest, {"messages": SAID, **NAMES}),
    (ChatTokenizeRequest, {"messages": [{}] * MANY}),
    (CompletionRequest, {"prompt": [1.5] * MANY}),
    (CompletionRequest, {"prompt": [["a"]] * MANY}),
    (CompletionRequest, {"prompt": [["a"] * MANY]}),
    (DetokenizeRequest, {"tokens": [""] * MANY}),
    (Turn, {"id": "1", "messages": [{}] * MANY}),
    (Turn, NAMES),
]


@pytest.mark.parametrize(("kind", "fields"), FAULTS, ids=range(len(FAULTS)))
def test_faults_in_very_many_places_are_few(kind: type[Input], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"model": "tiny", **fields})
    assert caught.value.error_count() < 20
