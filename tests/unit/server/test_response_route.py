"""A response through the app: what is asked for is done or refused, and what was said before is read."""

import json
import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from httpx2 import Response
from numpy.typing import NDArray
from starlette.testclient import TestClient

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.server.api.responses import input as response_input
from baichuan2_tpu.server.app import ServerOptions, create_app
from baichuan2_tpu.server.service import RequestRules
from baichuan2_tpu.server.transport import body_counts
from doubles.fakes import ByteTokenizer, HistoryEngine, ScriptedEngine
from running.served import MODEL, running_service, scripted_engine, served

RESPONSES = "/v1/responses"
USER, ASSISTANT = 257, 258
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
    },
}
CLOCK = {"type": "function", "name": "read_clock"}
CALLS = (
    '<tool_call>[{"name": "get_weather", "arguments": {"city": "Paris"}}, '
    '{"name": "read_clock", "arguments": {}}]</tool_call>'
)


class PromptEngine(ScriptedEngine):
    """Says what it is told to say, and keeps every prompt whole, whatever of it was computed before."""

    def __init__(self, *answers: str, max_context: int = 4096) -> None:
        tokenizer = ByteTokenizer()
        super().__init__(tokenizer.vocabulary_size, max_context=max_context)
        self.prompts: list[list[int]] = []
        for text in answers:
            self.enqueue_ids([*tokenizer.encode(text), tokenizer.END_ID])

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        if ids[-1] == ASSISTANT:
            self.prompts.append(list(ids))
        return super().logits(ids)

    def texts(self) -> list[bytes]:
        """Return the text of each prompt."""
        return [bytes(token for token in prompt if token < 256) for prompt in self.prompts]


def ask(client: TestClient, text: object = "hi", /, **fields: Any) -> Response:
    return client.post(RESPONSES, json={"model": MODEL, "input": text, **fields})


def answer(engine: ScriptedEngine, text: object = "hi", /, **fields: Any) -> dict[str, Any]:
    with served(engine) as client:
        response = ask(client, text, **fields)
    assert response.status_code == 200, response.text
    return response.json()


def text_of(response: dict[str, Any]) -> str:
    (item,) = response["output"]
    (part,) = item["content"]
    return part["text"]


def test_a_response_has_its_text_its_settings_and_true_counts() -> None:
    response = answer(scripted_engine("你好!"), temperature=0.5, metadata={"a": "b"}, user="me")
    assert response["id"].startswith("resp_")
    assert (response["object"], response["model"], response["status"]) == ("response", MODEL, "completed")
    (item,) = response["output"]
    assert item["id"].startswith("msg_")
    assert (item["type"], item["role"], item["status"]) == ("message", "assistant", "completed")
    (part,) = item["content"]
    assert part == {"type": "output_text", "text": "你好!", "annotations": [], "logprobs": []}
    usage = response["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (4, 7, 11)
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 4}
    assert (response["temperature"], response["top_p"]) == (0.5, 1)
    assert (response["metadata"], response["user"], response["store"]) == ({"a": "b"}, "me", True)
    assert response["error"] is response["incomplete_details"] is None


def test_a_response_that_reached_its_limit_says_so() -> None:
    response = answer(scripted_engine("hello"), max_output_tokens=2)
    assert (text_of(response), response["status"]) == ("he", "incomplete")
    assert response["output"][0]["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["completed_at"] is None


def test_the_model_reads_instructions_and_all_items_as_it_does_in_a_chat() -> None:
    engine = PromptEngine("ok")
    items = [
        {"role": "developer", "content": "D"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "b", "annotations": []}]},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": '{"x": 1}'},
        {"type": "function_call", "call_id": "2", "name": "g", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
        {"type": "function_call_output", "call_id": "2", "output": [{"type": "input_text", "text": "two"}]},
        {"role": "user", "content": "c"},
    ]
    answer(engine, items, instructions="S")
    calls = '<tool_call>[{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]</tool_call>'
    results = '<tool_result name="f">\none\n</tool_result>\n<tool_result name="g">\ntwo\n</tool_result>\n\nc'
    rounds = [USER, *b"a", ASSISTANT, *f"b{calls}".encode(), USER, *results.encode(), ASSISTANT]
    assert engine.prompts == [[*b"S\n\nD", *rounds]]


def test_a_last_answer_is_continued() -> None:
    items = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "be"}]
    response = answer(scripted_engine("gun"), items)
    assert (text_of(response), response["usage"]["input_tokens"]) == ("gun", len("a") + len("be") + 2)


def test_an_output_after_a_question_still_knows_its_call() -> None:
    engine = PromptEngine("ok")
    items = [
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"role": "user", "content": "b"},
        {"type": "function_call_output", "call_id": "1", "output": "one"},
    ]
    answer(engine, items)
    assert engine.texts()[0].endswith(b'b\n\n<tool_result name="f">\none\n</tool_result>')


def test_a_previous_response_stands_for_all_that_was_said_but_its_instructions() -> None:
    engine = PromptEngine("b", "d", "f")
    with served(engine) as client:
        first = ask(client, "a", instructions="S").json()
        second = ask(client, "c", previous_response_id=first["id"]).json()
        third = ask(client, "e", previous_response_id=second["id"], instructions="T").json()
    assert second["previous_response_id"] == first["id"]
    turns = [USER, *b"a", ASSISTANT, *b"b", USER, *b"c", ASSISTANT, *b"d", USER, *b"e", ASSISTANT]
    assert engine.prompts[-1] == [*b"T", *turns]
    assert third["usage"]["input_tokens"] == len(turns) + 1


def test_what_was_said_before_is_not_computed_again() -> None:
    with served(scripted_engine("b", "d")) as client:
        first = ask(client, "a").json()
        second = ask(client, "c", previous_response_id=first["id"]).json()
    usage = second["usage"]
    # All but the new question and the mark behind the answer.
    assert usage["input_tokens_details"]["cached_tokens"] == usage["input_tokens"] - 3


def test_calls_are_items_of_their_own_and_come_back_by_any_way() -> None:
    engine = PromptEngine(f"Well.{CALLS}", "a", "b", "c")
    more = {"tools": [WEATHER, CLOCK], "max_output_tokens": 200}
    with served(engine) as client:
        first = ask(client, "q", **more).json()
        message, *calls = first["output"]
        results = [
            {"type": "function_call_output", "call_id": call["call_id"], "output": "x"} for call in calls
        ]
        question = {"role": "user", "content": "q"}
        references = [{"type": "item_reference", "id": item["id"]} for item in first["output"]]
        for sent_back in ([question, *first["output"]], [question, *references]):
            assert ask(client, [*sent_back, *results], **more).status_code == 200
        ask(client, results, previous_response_id=first["id"], **more)
    assert (message["type"], message["content"][0]["text"], message["status"]) == (
        "message",
        "Well.",
        "completed",
    )
    assert [(call["type"], call["name"], call["arguments"], call["status"]) for call in calls] == [
        ("function_call", "get_weather", '{"city": "Paris"}', "completed"),
        ("function_call", "read_clock", "{}", "completed"),
    ]
    assert all(call["id"].startswith("fc_") and call["call_id"].startswith("call_") for call in calls)
    assert engine.prompts[1] == engine.prompts[2] == engine.prompts[3]
    assert f"Well.{CALLS}".encode() in engine.texts()[3]


def test_a_call_that_the_limit_cut_is_incomplete() -> None:
    response = answer(
        scripted_engine(CALLS, max_context=4096), tools=[WEATHER, CLOCK], max_output_tokens=len(CALLS) - 15
    )
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]
    assert response["status"] == "incomplete"


@pytest.mark.parametrize(
    "choice",
    [
        "required",
        {"type": "function", "name": "read_clock"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "read_clock"}]},
    ],
)
def test_a_call_can_be_required(choice: object) -> None:
    engine = HistoryEngine(ByteTokenizer().vocabulary_size, max_context=4096)
    with served(engine) as client:
        response = ask(client, tools=[CLOCK], tool_choice=choice, max_output_tokens=300, temperature=1).json()
    assert response["tool_choice"] == choice
    assert response["output"][0]["name"] == "read_clock"


def test_of_allowed_tools_the_model_is_told_of_no_other() -> None:
    engine = PromptEngine("ok")
    allowed = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "read_clock"}]}
    answer(engine, tools=[WEATHER, CLOCK], tool_choice=allowed)
    assert b"read_clock" in engine.texts()[0]
    assert b"get_weather" not in engine.texts()[0]


@pytest.mark.parametrize(
    "text_format",
    [
        {"type": "json_schema", "name": "n", "schema": {"enum": [{"a": 1}]}, "strict": True},
        {"type": "json_object"},
        {"type": "json_schema", "name": "n"},
    ],
)
def test_a_text_follows_its_format(text_format: dict[str, Any]) -> None:
    engine = HistoryEngine(ByteTokenizer().vocabulary_size, max_context=4096)
    with served(engine) as client:
        response = ask(client, text={"format": text_format}, max_output_tokens=500, temperature=0).json()
    assert text_of(response).startswith("{")
    if "schema" in text_format:
        assert json.loads(text_of(response)) == {"a": 1}
    assert response["text"]["format"]["type"] == text_format["type"]


@pytest.mark.parametrize(
    ("fields", "count"),
    [({"include": ["message.output_text.logprobs"]}, 0), ({"top_logprobs": 2}, 2)],
)
def test_log_probabilities_are_included_where_they_are_asked_for(fields: dict[str, Any], count: int) -> None:
    response = answer(scripted_engine("你!"), **fields)
    logprobs = response["output"][0]["content"][0]["logprobs"]
    assert [entry["bytes"] for entry in logprobs] == [[byte] for byte in "你!".encode()]
    assert [len(entry["top_logprobs"]) for entry in logprobs] == [count] * 4


def test_old_rounds_are_left_out_only_where_truncation_is_automatic() -> None:
    engine = PromptEngine("ok", max_context=256)
    items = [{"role": role, "content": role[0] * 100} for role in ("user", "assistant") * 2]
    items.append({"role": "user", "content": "end"})
    with served(engine) as client:
        refused = ask(client, items, instructions="S", truncation="disabled").json()["error"]
        response = ask(client, items, instructions="S", truncation="auto").json()
    assert (refused["param"], refused["code"]) == ("input", "context_length_exceeded")
    assert (text_of(response), response["truncation"]) == ("ok", "auto")
    assert engine.prompts[-1] == [
        *b"S", USER, *b"u" * 100, ASSISTANT, *b"a" * 100, USER, *b"end", ASSISTANT,
    ]  # fmt: skip


def test_far_too_long_an_input_is_trimmed_without_being_encoded() -> None:
    items = [{"role": "user", "content": "u" * 3000}, {"role": "assistant", "content": "a"}]
    response = answer(scripted_engine("ok"), [*items, {"role": "user", "content": "end"}], truncation="auto")
    assert response["usage"]["input_tokens"] == len("end") + 2


IMAGE = {"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}


@pytest.mark.parametrize(
    ("fields", "status", "param", "words"),
    [
        ({"input": 1}, 422, "input", "text or a list is needed"),
        ({"input": None}, 422, "input", "text or a list is needed"),
        ({"input": []}, 400, "input", "input is empty"),
        ({"input": [1]}, 422, "input", "input.0"),
        ({"input": [{"content": "a"}]}, 422, "input", "input.0 has no type; one is needed"),
        ({"input": [{"role": "tool", "content": "a"}]}, 422, "input", "input.0.role"),
        ({"input": [IMAGE]}, 422, "input", "'input_image'; this model reads text only"),
        ({"input": [{"type": "web_search_call", "id": "ws"}]}, 422, "input", "of the kind 'web_search_call'"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, 400, "input", "'msg_1' is not stored"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]},
            400,
            "input",
            "the call_id 'c' is of no function_call before it",
        ),
        (
            {"tools": [{"type": "web_search"}]},
            422,
            "tools",
            "'web_search'; this server searches",
        ),
        ({"tools": [{"type": "custom", "name": "a"}]}, 422, "tools", "functions, which the client runs"),
        ({"tools": [CLOCK, CLOCK]}, 400, "tools", "two tools have the name"),
        ({"tool_choice": {"type": "file_search"}}, 422, "tool_choice", "searches and runs nothing"),
        ({"tool_choice": {"type": "function", "name": "x"}}, 400, "tool_choice", "name one of the tools"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [CLOCK]}},
            400,
            "tool_choice",
            "tool_choice names 'read_clock'",
        ),
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id", "'resp_1' is not stored"),
        ({"background": True}, 400, "background", "nothing is computed in the background"),
        ({"conversation": "conv_1"}, 400, "conversation", "use previous_response_id"),
        ({"prompt": {"id": "p"}}, 400, "prompt", "no prompts are stored"),
        ({"max_tokens": 5}, 400, "max_tokens", "use max_output_tokens"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format", "use text with format"),
        ({"modalities": ["audio"]}, 400, "modalities", "text only"),
        ({"text": {"format": {"type": "x"}}}, 422, "text", "'json_schema' is allowed"),
        (
            {"text": {"format": {"type": "json_schema", "schema": {"type": 1}}}},
            400,
            "text",
            "is not supported",
        ),
        ({"max_output_tokens": 0}, 422, "max_output_tokens", "1 or more is allowed"),
        ({"max_output_tokens": 3, "n_predict": 4}, 400, "max_output_tokens", "give only one"),
        ({"n": 2}, 422, "n", "1 or less is allowed"),
        ({"metadata": {"a": 1}}, 422, "metadata", "metadata.a is 1; text is needed"),
        ({"metadata": {str(name): "" for name in range(17)}}, 422, "metadata", "at most 16"),
        ({"instructions": ["a"]}, 422, "instructions", "text is needed"),
        ({"temperature": 3}, 422, "temperature", "2.0 or less"),
        ({"model": "gpt"}, 404, "model", "is not served here"),
        ({"input": "a\ud800"}, 422, "input", "half of a surrogate pair"),
        ({"user": "\ud800"}, 422, "user", "half of a surrogate pair"),
        ({"input": "a" * 2000}, 400, "input", "tokens at least"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words_with_its_field(
    fields: dict[str, Any], status: int, param: str, words: str
) -> None:
    with served(scripted_engine()) as client:
        body = json.dumps({"model": MODEL, "input": "hi", **fields}).encode()
        response = client.post(RESPONSES, content=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (status, param)
    assert words in error["message"]


def test_what_changes_nothing_is_accepted_and_named() -> None:
    fields = {
        "background": False,
        "include": ["reasoning.encrypted_content"],
        "reasoning": {"effort": "low"},
        "service_tier": "auto",
        "max_tool_calls": 3,
        "text": {"verbosity": "high", "format": None},
        "stream_options": {"include_obfuscation": True},
        "conversation": None,
    }
    items = [
        {"role": "assistant", "content": "a", "id": "msg_1", "status": "completed", "phase": "commentary"}
    ]
    with served(scripted_engine("ok")) as client:
        response = ask(client, [*items, {"role": "user", "content": "b"}], **fields)
    assert response.status_code == 200
    assert response.headers["x-ignored-fields"].split(", ") == [
        "reasoning", "max_tool_calls", "stream_options.include_obfuscation", "input.phase", "text.verbosity",
    ]  # fmt: skip


def test_what_openai_itself_sends_back_passes_a_strict_server() -> None:
    with running_service(scripted_engine("a", "b")) as service:
        service.rules = RequestRules(is_strict=True)
        with TestClient(create_app(service)) as client:
            first = ask(client, [{"role": "user", "content": "q"}]).json()
            again = ask(client, [*first["output"], {"role": "user", "content": "q"}])
            refused = ask(client, nonsense=1)
    assert again.status_code == 200
    assert refused.status_code == 422


def test_tools_that_do_not_fit_are_left_out_as_they_are_of_chats() -> None:
    with running_service(scripted_engine("ok", max_context=1000)) as service:
        service.rules = RequestRules(tools="fit")
        with TestClient(create_app(service)) as client:
            tools = [{**CLOCK, "name": f"clock_{number}"} for number in range(9)]
            response = ask(client, tools=tools, max_output_tokens=100)
    assert response.headers["x-tools-left-out"] == "3 of 9"
    assert len(response.json()["tools"]) == 9


def test_a_response_is_shown_listed_and_deleted() -> None:
    with served(scripted_engine("b", "d")) as client:
        first = ask(client, "a").json()
        second = ask(client, "c", previous_response_id=first["id"]).json()
        path = f"{RESPONSES}/{second['id']}"
        assert client.get(path).json() == second
        items = client.get(f"{path}/input_items").json()
        deleted = client.delete(path)
        gone = [client.get(path), client.delete(path), client.get(f"{path}/input_items")]
        assert client.get(f"{RESPONSES}/{first['id']}").json() == first
    texts = [item["content"][0]["text"] for item in items["data"]]
    assert texts == ["c", "b", "a"]
    assert (items["object"], items["has_more"]) == ("list", False)
    assert (items["first_id"], items["last_id"]) == (items["data"][0]["id"], items["data"][-1]["id"])
    assert deleted.json() == {"id": second["id"], "object": "response", "deleted": True}
    assert {response.status_code for response in gone} == {404}


def test_input_items_come_in_pages_in_either_order() -> None:
    items = [{"role": "user", "content": str(number)} for number in range(5)]
    with served(scripted_engine("ok")) as client:
        path = f"{RESPONSES}/{ask(client, items).json()['id']}/input_items"
        seen: list[str] = []
        after: dict[str, str] = {}
        has_more = True
        while has_more:
            page = client.get(path, params={"order": "asc", "limit": 2, **after}).json()
            seen += [item["content"][0]["text"] for item in page["data"]]
            after, has_more = {"after": page["last_id"]}, page["has_more"]
        newest = client.get(path, params={"limit": 1}).json()
        behind_all = client.get(path, params={"order": "asc", **after}).json()
        unknown = client.get(path, params={"after": "msg_1"})
        queries = ({"limit": 0}, {"limit": 101}, {"order": "x"}, {"limit": "a"})
        wrong = [client.get(path, params=query).json()["error"] for query in queries]
    assert seen == list("01234")
    assert (newest["data"][0]["content"][0]["text"], newest["has_more"]) == ("4", True)
    assert (behind_all["data"], behind_all["has_more"]) == ([], False)
    assert unknown.status_code == 400
    # The errors were about a body that is no JSON object.
    assert [(error["param"], error["message"]) for error in wrong] == [
        ("limit", 'limit is "0"; 1 or more is allowed'),
        ("limit", 'limit is "101"; 100 or less is allowed'),
        ("order", "order is \"x\"; 'asc' or 'desc' is allowed"),
        ("limit", 'limit is "a"; a whole number is needed'),
    ]


def test_items_that_share_an_id_are_told_apart() -> None:
    # Clients give all items one id that they made up, and pages of them would never have ended.
    items = [{"role": "user", "content": str(number), "id": "__fake_id__"} for number in range(3)]
    with served(scripted_engine("ok", "ok")) as client:
        first = ask(client, items).json()
        listed = client.get(f"{RESPONSES}/{first['id']}/input_items").json()["data"]
        reference = {"type": "item_reference", "id": "__fake_id__"}
        second = ask(client, [reference], previous_response_id=first["id"]).json()
        again = client.get(f"{RESPONSES}/{second['id']}/input_items").json()["data"]
    assert [item["content"][0]["text"] for item in listed] == ["2", "1", "0"]
    assert [item["content"][0]["text"] for item in again] == ["0", "ok", "2", "1", "0"]
    for data in (listed, again):
        assert len({item["id"] for item in data}) == len(data)
        assert data[-1]["id"] == "__fake_id__"


def test_a_stored_response_is_not_streamed() -> None:
    with served(scripted_engine("ok")) as client:
        response = client.get(f"{RESPONSES}/{ask(client).json()['id']}", params={"stream": "true"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "stream")


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        (ServerOptions(), {"store": False}),
        (ServerOptions(stored_responses=0), {}),
        (ServerOptions(stored_responses=0), {"store": True}),
        (ServerOptions(stored_bytes=100), {}),
    ],
)
def test_a_response_that_is_not_stored_says_so(options: ServerOptions, fields: dict[str, Any]) -> None:
    with served(scripted_engine("ok"), options) as client:
        response = ask(client, **fields)
        assert client.get(f"{RESPONSES}/{response.json()['id']}").status_code == 404
    assert response.json()["store"] is False
    assert response.headers.get("x-ignored-fields") == ("store" if fields.get("store") else None)


@pytest.mark.parametrize("limits", [{"stored_responses": -1}, {"stored_bytes": -1}])
def test_limits_of_stored_responses_are_not_negative(limits: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="0 or more is allowed"):
        ServerOptions(**limits)


def test_a_conversation_may_be_as_large_as_a_body() -> None:
    # A chain of responses could otherwise grow without end where old rounds are left out of the prompt.
    with served(scripted_engine("ok", "ok"), ServerOptions(max_body_bytes=2000)) as client:
        text = {"role": "user", "content": "a" * 800}
        first = ask(client, [text, {"role": "user", "content": "b"}], truncation="auto")
        assert first.status_code == 400  # one round that does not fit
        items = [text, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
        second = ask(client, items, truncation="auto").json()
        third = ask(client, items, truncation="auto", previous_response_id=second["id"])
    assert (third.status_code, third.json()["error"]["code"]) == (413, "body_too_large")


def test_many_references_to_a_large_item_are_counted_before_they_are_copied() -> None:
    # 4,096 references to an item of a megabyte are a body of 200 KB, and were 4 GB of memory.
    item = {"role": "user", "content": "a" * 100_000, "id": "large"}
    with served(scripted_engine("ok"), ServerOptions(max_body_bytes=300_000)) as client:
        items = [item, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
        assert ask(client, items, truncation="auto").status_code == 200
        tracemalloc.start()
        references = [{"type": "item_reference", "id": "large"}] * 4000
        response = ask(client, references, truncation="auto")
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
    assert peak_bytes < 50_000_000


def test_log_probabilities_are_no_part_of_what_is_continued() -> None:
    # With 20 of them a token took 2 KB of a conversation, which is bounded.
    with served(scripted_engine("b" * 20, "d")) as client:
        first = ask(client, "a", top_logprobs=20).json()
        second = ask(client, "c", previous_response_id=first["id"]).json()
        answer = client.get(f"{RESPONSES}/{second['id']}/input_items").json()["data"][1]
        assert client.get(f"{RESPONSES}/{first['id']}").json() == first
    assert answer["content"] == [{"type": "output_text", "text": "b" * 20, "annotations": []}]


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("levels", [230, 245, 250, 251, 252])
def test_a_field_that_could_not_be_repeated_is_refused_before_anything_is_sent(
    levels: int, is_stream: bool
) -> None:
    # A stream ended after its head, since 251 levels in the request are 255 in an event.
    parameters: dict[str, Any] = {}
    for _ in range(levels):
        parameters = {"a": parameters}
    tool = {**CLOCK, "parameters": {"type": "object", "default": parameters}}
    with served(scripted_engine("ok", max_context=4096)) as client:
        response = ask(client, tools=[tool], tool_choice="none", stream=is_stream)
    assert response.status_code == (200 if levels == 230 else 422)
    if is_stream and levels == 230:
        assert "event: response.completed" in response.text


def test_a_conversation_may_have_as_many_items_as_a_body(monkeypatch: pytest.MonkeyPatch) -> None:
    assert response_input._MAX_ITEMS == body_counts._MAX_MESSAGES
    monkeypatch.setattr(response_input, "_MAX_ITEMS", 4)
    with served(scripted_engine("b", "d", "f")) as client:
        first = ask(client, "a").json()
        second = ask(client, "c", previous_response_id=first["id"]).json()
        third = ask(client, "e", previous_response_id=second["id"])
    assert (third.status_code, third.json()["error"]["code"]) == (422, "too_many_values")


def test_a_continued_response_needs_nothing_of_those_before_it() -> None:
    with served(scripted_engine("b", "d", "f"), ServerOptions(stored_responses=1)) as client:
        first = ask(client, "a").json()
        second = ask(client, "c", previous_response_id=first["id"]).json()
        assert client.get(f"{RESPONSES}/{first['id']}").status_code == 404
        third = ask(client, "e", previous_response_id=second["id"]).json()
    assert third["usage"]["input_tokens"] == len("abcde") + 6
