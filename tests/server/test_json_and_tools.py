"""JSON and calls of functions through OpenAI's own client; the model talks nonsense, and still they parse."""

import json
from typing import Literal, cast

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel, Field

from baichuan2_tpu.server.service import Service

MODEL = "Tiny-Chat"
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "天气?"}]


class Weather(BaseModel):
    """What the client's helper turns into a strict schema."""

    sky: Literal["sun", "雨"]
    hours: list[Literal[1, 2]] = Field(max_length=3)


LAMP: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "switch_lamp",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"is_on": {"type": "boolean"}, "room": {"enum": ["hall", "厨房"]}},
            "required": ["is_on", "room"],
            "additionalProperties": False,
        },
    },
}


@pytest.mark.parametrize("seed", range(3))
def test_the_client_parses_an_answer_into_its_own_type(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.parse(
        model=MODEL, messages=MESSAGES, response_format=Weather, temperature=1, seed=seed, max_tokens=200
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    assert isinstance(choice.message.parsed, Weather)


def test_a_json_object_is_streamed(client: openai.OpenAI, service: Service) -> None:
    closing = {str(service.model.tokenizer.encode(text)[0]): 100 for text in '"}'}
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        response_format={"type": "json_object"},
        logit_bias={token: int(bias) for token, bias in closing.items()},
        temperature=0,
        max_tokens=100,
        stream=True,
        extra_body={"repetition_penalty": 1},
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert isinstance(json.loads(text), dict)


def test_a_schema_that_cannot_be_enforced_is_a_bad_request(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}},
            },
        )


@pytest.mark.parametrize("has_nulls", [False, True])
def test_a_function_is_called_and_its_result_is_read(client: openai.OpenAI, has_nulls: bool) -> None:
    asked = client.chat.completions.create(
        model=MODEL,
        messages=MESSAGES,
        tools=[LAMP],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=200,
        temperature=0,
    )
    (choice,) = asked.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls
    answered: list[ChatCompletionMessageParam] = [
        *MESSAGES,
        # As OpenAI's guides do it, the one and the other.
        cast(
            "ChatCompletionMessageParam",
            choice.message.model_dump() if has_nulls else choice.message.to_dict(),
        ),
    ]
    for call in choice.message.tool_calls:
        assert call.type == "function"
        arguments = json.loads(call.function.arguments)
        assert arguments["room"] in ("hall", "厨房")
        assert isinstance(arguments["is_on"], bool)
        answered.append({"role": "tool", "tool_call_id": call.id, "content": "done"})
    after = client.chat.completions.create(
        model=MODEL, messages=answered, tools=[LAMP], tool_choice="none", max_tokens=4
    )
    assert after.choices[0].message.tool_calls is None


@pytest.mark.parametrize("max_tokens", [3, 14])
def test_a_forced_call_that_is_cut_says_nothing(client: openai.OpenAI, max_tokens: int) -> None:
    asked = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, tools=[LAMP], tool_choice="required", max_tokens=max_tokens
    )
    assert asked.choices[0].message.content is None
    assert asked.choices[0].finish_reason == "length"


def test_the_client_puts_a_streamed_call_together(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(
        model=MODEL,
        messages=MESSAGES,
        tools=[LAMP],
        tool_choice={"type": "function", "function": {"name": "switch_lamp"}},
        parallel_tool_calls=False,
        temperature=1,
        seed=1,
        max_tokens=200,
    ) as stream:
        final = stream.get_final_completion()
    (choice,) = final.choices
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.function.name == "switch_lamp"
    assert json.loads(call.function.arguments) == call.function.parsed_arguments
    assert call.function.parsed_arguments["room"] in ("hall", "厨房")  # pyright: ignore[reportIndexIssue, reportUnknownMemberType, reportOptionalSubscript]


def test_a_penalty_of_frequency_changes_what_is_said_again(client: openai.OpenAI, service: Service) -> None:
    (token_id,) = service.model.tokenizer.encode("a")

    def say(penalty: float) -> str:
        answer = client.chat.completions.create(
            model=MODEL,
            messages=MESSAGES,
            max_tokens=30,
            temperature=0,
            logit_bias={str(token_id): 20},
            frequency_penalty=penalty,
            extra_body={"repetition_penalty": 1},
        )
        return answer.choices[0].message.content or ""

    assert say(0) == "a" * 30
    assert set(say(2)) != {"a"}
