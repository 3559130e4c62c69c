"""Conversations as clients send them: nothing a person wrote is lost, and a model can read the result."""

from typing import Any

import pytest
from pydantic import TypeAdapter

from baichuan2_tpu.server.api.conversation import read_messages
from baichuan2_tpu.server.api.schema_chat import ChatMessage
from baichuan2_tpu.server.errors import ApiError

MESSAGES = TypeAdapter(list[ChatMessage])


def said(role: str, content: object = None, **fields: object) -> dict[str, object]:
    return {"role": role, "content": content, **fields}


def read(*messages: dict[str, Any]) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in read_messages(MESSAGES.validate_python(messages))]


CALL = {"id": "c", "function": {"name": "f", "arguments": '{"a": 1}'}, "index": 0}
WRITTEN = '<tool_call>[{"name": "f", "arguments": {"a": 1}}]</tool_call>'


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            [said("user", "q"), said("system", "A"), said("developer", "B"), said("system", "")],
            [("system", "A\n\nB"), ("user", "q")],
        ),
        ([said("assistant", "hi"), said("user", "q")], [("assistant", "hi"), ("user", "q")]),
        (
            [said("user", "a"), said("user", "b"), said("assistant", "c"), said("assistant", "d")],
            [("user", "a\n\nb"), ("assistant", "c\n\nd")],
        ),
        (
            [said("user", ""), said("assistant"), said("user")],
            [("user", ""), ("assistant", ""), ("user", "")],
        ),
        ([said("system", "A")], [("system", "A"), ("user", "")]),
        (
            [said("user", [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}])],
            [("user", "ab")],
        ),
        (
            [said("user", "q"), said("assistant", [{"type": "refusal", "refusal": "No."}])],
            [("user", "q"), ("assistant", "No.")],
        ),
    ],
)
def test_messages_of_one_side_are_joined_and_system_messages_stand_in_front(
    messages: list[dict[str, Any]], expected: list[tuple[str, str]]
) -> None:
    assert read(*messages) == expected


def test_names_are_written_where_they_tell_speakers_apart() -> None:
    alone = [said("user", "q", name="user_proxy"), said("assistant", "a", name="critic")]
    assert read(*alone) == [("user", "q"), ("assistant", "a")]
    group = [said("user", "q", name="ann"), said("user", "r", name="bob"), said("assistant", "a", name="c")]
    assert read(*group) == [("user", "ann: q\n\nbob: r"), ("assistant", "a")]


def test_calls_and_results_are_read_with_all_that_clients_add() -> None:
    made = said("assistant", None, tool_calls=[CALL], name="agent")
    result = said("tool", "r", tool_call_id="c", name="f", status="success")
    shown = '<tool_result name="f">\nr\n</tool_result>'
    assert read(said("user", "q"), made, result, said("user", "and?")) == [
        ("user", "q"),
        ("assistant", WRITTEN),
        ("user", f"{shown}\n\nand?"),
    ]
    as_object = {**CALL, "function": {"name": "f", "arguments": {"a": 1}}}
    assert read(said("assistant", None, tool_calls=[as_object]))[0][1] == WRITTEN
    empty = {**CALL, "function": {"name": "f", "arguments": ""}}
    assert read(said("assistant", None, tool_calls=[empty]))[0][1] == WRITTEN.replace('{"a": 1}', "{}")


def test_a_result_needs_its_call_or_a_name() -> None:
    assert read(said("function", "r", name="f")) == [("user", '<tool_result name="f">\nr\n</tool_result>')]
    with pytest.raises(ApiError, match="'x' is of no call"):
        read(said("user", "q"), said("tool", "r", tool_call_id="x"))
