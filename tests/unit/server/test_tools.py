"""Functions a model may call: it can call no other, nor with other arguments, and only when it may."""

import json
import re
from typing import Any, cast

import pytest
from httpx2 import Response
from starlette.testclient import TestClient

from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.service import RequestRules, ToolRule
from doubles.fakes import ByteTokenizer, HistoryEngine, ScriptedEngine
from running.served import chat_body, running_service, scripted_engine, served

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "天气 of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city"],
            "additionalProperties": False,
            "$defs": {"city": {"enum": ["上海", 'Paris "P" }]']}},
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "read_clock"}}
TOOLS = [WEATHER, CLOCK]
CALLS = (
    '<tool_call>[{"name": "get_weather", "arguments": {"city": "上海", "days": 2}}, '
    '{"name": "read_clock", "arguments": {}}]</tool_call>'
)


def engine_that_says(text: str = "") -> ScriptedEngine:
    return scripted_engine(text, max_context=4096)


def ask(engine: ScriptedEngine | HistoryEngine, **fields: Any) -> Response:
    with served(engine) as client:
        return client.post(CHAT, json=chat_body(**({"tools": TOOLS, "max_tokens": 200} | fields)))


def read_answer(engine: ScriptedEngine | HistoryEngine, **fields: Any) -> tuple[str | None, list[Any], str]:
    """Return text, calls and reason of an answer."""
    (choice,) = ask(engine, **fields).json()["choices"]
    calls = choice["message"]["tool_calls"] or []
    assert all(call["type"] == "function" and call["id"].startswith("call_") for call in calls)
    assert len({call["id"] for call in calls}) == len(calls)
    functions = [(call["function"]["name"], call["function"]["arguments"]) for call in calls]
    return choice["message"]["content"], functions, choice["finish_reason"]


def test_calls_are_read_out_of_an_answer() -> None:
    calls = [("get_weather", '{"city": "上海", "days": 2}'), ("read_clock", "{}")]
    assert read_answer(engine_that_says(CALLS)) == (None, calls, "tool_calls")
    assert read_answer(engine_that_says(f"我看看。{CALLS}")) == ("我看看。", calls, "tool_calls")


@pytest.mark.parametrize(
    ("stop", "calls", "reason"),
    [
        ("上", [("get_weather", '{"city": "')], "stop"),
        ("read_clock", [("get_weather", '{"city": "上海", "days": 2}')], "tool_calls"),
    ],
)
def test_a_call_that_a_stop_string_cut_is_not_announced_as_whole(
    stop: str, calls: list[tuple[str, str]], reason: str
) -> None:
    assert read_answer(engine_that_says(CALLS), stop=stop) == (None, calls, reason)


@pytest.mark.parametrize("text", ["hello", "a <b>", "an <tool_call", "<tool_call> is a mark"])
def test_an_answer_may_be_text(text: str) -> None:
    assert read_answer(engine_that_says(text)) == (text, [], "stop")


@pytest.mark.parametrize("text", [CALLS, f"Let me see. {CALLS}", "hello <tool", f"<tool {CALLS}"])
def test_a_stream_makes_the_whole_answer(text: str) -> None:
    content, calls, reason = read_answer(engine_that_says(text))
    response = ask(engine_that_says(text), stream=True)
    choices = [
        json.loads(line.removeprefix("data: "))["choices"][0] for line in response.text.split("\n\n")[:-2]
    ]
    deltas = [delta for choice in choices for delta in choice["delta"].get("tool_calls", [])]
    heads = [delta for delta in deltas if "id" in delta]
    assert [head["index"] for head in heads] == list(range(len(calls)))
    assert all("name" not in delta["function"] for delta in deltas if "id" not in delta)
    streamed = [
        (
            head["function"]["name"],
            "".join(delta["function"]["arguments"] for delta in deltas if delta["index"] == head["index"]),
        )
        for head in heads
    ]
    assert streamed == calls
    assert "".join(choice["delta"].get("content", "") for choice in choices) == (content or "")
    assert choices[-1]["finish_reason"] == reason


@pytest.mark.parametrize("seed", range(3))
def test_a_call_that_is_required_is_made_with_arguments_that_are_allowed(seed: int) -> None:
    engine = HistoryEngine(ByteTokenizer().vocabulary_size, max_context=1024)
    content, calls, reason = read_answer(
        engine, tool_choice="required", parallel_tool_calls=False, temperature=1, seed=seed, max_tokens=300
    )
    assert (content, reason) == (None, "tool_calls")
    ((name, arguments),) = calls
    if name == "get_weather":
        assert json.loads(arguments)["city"] in WEATHER["function"]["parameters"]["$defs"]["city"]["enum"]
    else:
        assert (name, json.loads(arguments)) == ("read_clock", {})


def test_an_answer_has_a_bounded_number_of_calls() -> None:
    clock = '{"name": "read_clock", "arguments": {}}'
    engine = engine_that_says("<tool_call>[" + ", ".join([clock] * 20))
    _, calls, reason = read_answer(engine, max_tokens=1000)
    assert ([name for name, _ in calls], reason) == (["read_clock"] * 8, "tool_calls")


def test_a_named_function_is_called_and_no_other() -> None:
    choice = {"type": "function", "function": {"name": "read_clock"}}
    _, calls, reason = read_answer(engine_that_says(CALLS), tool_choice=choice, parallel_tool_calls=False)
    assert ([name for name, _ in calls], reason) == (["read_clock"], "tool_calls")


def test_no_function_is_called_when_none_may_be() -> None:
    assert read_answer(engine_that_says(CALLS), tool_choice="none") == (CALLS, [], "stop")
    assert read_answer(engine_that_says(CALLS), tools=None) == (CALLS, [], "stop")


def test_an_answer_that_is_no_call_follows_the_response_format() -> None:
    asked = {"type": "json_object"}
    assert read_answer(engine_that_says('{"a": 1}'), response_format=asked) == ('{"a": 1}', [], "stop")
    assert read_answer(engine_that_says(CALLS), response_format=asked)[2] == "tool_calls"


def test_a_call_that_was_cut_comes_as_far_as_it_was_written() -> None:
    cut = CALLS.index("上海") + 3
    content, calls, reason = read_answer(engine_that_says(CALLS), max_tokens=cut)
    assert (content, calls, reason) == (None, [("get_weather", '{"city": "上')], "length")


def prompt_of(engine: ScriptedEngine) -> str:
    """Return the text of what was fed, but for the answer."""
    return ByteTokenizer().decode(engine.fed[0])


def test_the_model_is_told_of_the_functions_behind_the_system_message() -> None:
    engine = engine_that_says("ok")
    engine.prompt_piece = 4096
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    ask(engine, messages=messages)
    prompt = prompt_of(engine)
    assert prompt.startswith("Be brief.\n\nYou can call these functions. 你可以调用以下函数：\n{")
    assert (
        '{"name": "get_weather", "description": "天气 of a city", "parameters": {"type": "object"' in prompt
    )
    assert '{"name": "read_clock", "parameters": {"type": "object", "properties": {}' in prompt
    assert '<tool_call>[{"name": "...", "arguments": {...}}]</tool_call>' in prompt


def call(call_id: str, name: str, arguments: str) -> dict[str, object]:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}


ROUND: list[dict[str, object]] = [
    {"role": "user", "content": "hi"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            call("a", "get_weather", '{"city": "上海", "days": 2}'),
            call("b", "read_clock", "{}"),
        ],
    },
    {"role": "tool", "tool_call_id": "b", "content": "12:00"},
    {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "rain"}]},
]


def test_the_model_reads_its_calls_as_it_wrote_them_and_then_the_results() -> None:
    engine = engine_that_says("ok")
    engine.prompt_piece = 4096
    assert ask(engine, messages=ROUND, tools=None).status_code == 200
    results = (
        '<tool_result name="read_clock">\n12:00\n</tool_result>\n'
        '<tool_result name="get_weather">\nrain\n</tool_result>'
    )
    assert prompt_of(engine) == f"hi{CALLS}{results}"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tool_choice": "required", "tools": None}, "tool_choice", "'required' without tools"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "x"}}},
            "tool_choice",
            "'x'; name one of the tools",
        ),
        ({"tools": [CLOCK, CLOCK]}, "tools", "two tools have the name 'read_clock'"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "string"}}}]},
            "tools",
            "the parameters of 'f' have the type 'string'",
        ),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"not": {}}}}]},
            "tools",
            "the parameters of 'f': the grammar is not supported: .*not",
        ),
        ({"messages": [{"role": "user", "content": "hi"}, ROUND[2]]}, "messages", "'b' is of no call"),
        ({"messages": [*ROUND, ROUND[0], ROUND[2]], "tools": None}, "messages", "'b' is of no call"),
    ],
)
def test_what_cannot_be_called_is_refused(fields: dict[str, object], param: str, message: str) -> None:
    response = ask(engine_that_says(), **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param)
    assert re.search(message, error["message"])


MANY = [
    {"type": "function", "function": {"name": f"tool_{index}", "description": "d" * 40}} for index in range(9)
]


def ask_by(rule: str, max_context: int, **fields: Any) -> tuple[ScriptedEngine, Response]:
    engine = scripted_engine("ok", max_context=max_context)
    engine.prompt_piece = 4096
    with running_service(engine) as service:
        service.rules = RequestRules(tools=cast("ToolRule", rule))
        with TestClient(create_app(service)) as client:
            return engine, client.post(CHAT, json=chat_body(**({"tools": MANY, "max_tokens": 5} | fields)))


def test_tools_that_are_off_are_left_out_and_counted_in_a_header() -> None:
    engine, response = ask_by("off", 4096)
    assert (response.status_code, response.headers["x-tools-left-out"]) == (200, "9 of 9")
    assert engine.fed[0] == [257, *b"hi", 258]
    assert ask_by("off", 4096, tool_choice="required")[1].status_code == 400


def test_the_newest_tools_that_fit_are_kept() -> None:
    # Open WebUI sends 36 tools with every question, 6,768 tokens of Baichuan2's 4,096.
    engine, response = ask_by("fit", 800)
    assert response.status_code == 200
    prompt = prompt_of(engine)
    kept = [index for index in range(9) if f'"tool_{index}"' in prompt]
    assert kept
    assert kept == list(range(9 - len(kept), 9))
    assert response.headers["x-tools-left-out"] == f"{9 - len(kept)} of 9"
    _, larger = ask_by("fit", 4096)
    assert "x-tools-left-out" not in larger.headers
    _, none = ask_by("fit", 100)
    assert none.headers["x-tools-left-out"] == "9 of 9"


def test_a_prompt_that_is_too_long_says_what_takes_how_much_of_it() -> None:
    messages = [{"role": "system", "content": "s" * 30}, {"role": "user", "content": "q" * 50}]
    _, response = ask_by("all", 800, messages=messages)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    match = re.fullmatch(
        r"the prompt is (\d+) tokens, 800 are allowed; (\d+) describe 9 tools, 30 are system messages "
        r"and 52 the conversation: .*",
        error["message"],
    )
    assert match
    assert int(match[1]) == int(match[2]) + 30 + 52
