"""LiteLLM, as a library."""

from __future__ import annotations

import json
from typing import Any

import litellm
from pydantic import BaseModel
from scenarios import (
    BASE_URL,
    CANCEL,
    CHAT,
    CHAT_ANSWER,
    KEY,
    MODEL,
    PERSON,
    RESULT,
    RESULT_ANSWER,
    WEATHER_TWICE,
    check,
    report,
    weather_tool,
)


class Person(BaseModel):
    name: str
    age: int


def complete(text: str | list[Any], **more: Any) -> Any:
    messages = [{"role": "user", "content": text}] if isinstance(text, str) else text
    return litellm.completion(
        model=f"openai/{MODEL}", api_base=BASE_URL, api_key=KEY, messages=messages, num_retries=0, **more
    )


def chat() -> None:
    answer = complete(CHAT).choices[0].message.content
    check(answer == CHAT_ANSWER, repr(answer))


def stream() -> None:
    text = "".join(chunk.choices[0].delta.content or "" for chunk in complete(CHAT, stream=True))
    check(text == CHAT_ANSWER, repr(text))


def second_turn(message: Any) -> None:
    calls = message.tool_calls or []
    cities = [json.loads(call.function.arguments) for call in calls]
    check(cities == [{"city": "Paris"}, {"city": "Rome"}], f"the arguments are {cities}")
    results = [
        {"role": "tool", "tool_call_id": call.id, "name": call.function.name, "content": RESULT}
        for call in calls
    ]
    for sent_back in (message, message.model_dump()):
        messages = [{"role": "user", "content": WEATHER_TWICE}, sent_back, *results]
        answer = complete(messages, tools=[weather_tool()]).choices[0].message.content
        check(answer == RESULT_ANSWER, repr(answer))


def tools() -> None:
    second_turn(complete(WEATHER_TWICE, tools=[weather_tool()]).choices[0].message)


def stream_tools() -> None:
    chunks = list(complete(WEATHER_TWICE, tools=[weather_tool()], stream=True))
    second_turn(litellm.stream_chunk_builder(chunks).choices[0].message)


def json_schema() -> None:
    answer = complete(PERSON, response_format=Person).choices[0].message.content
    check(Person.model_validate_json(answer) == Person(name="Ada", age=36), repr(answer))


def cancel() -> None:
    chunks = complete(CANCEL, stream=True)
    for _number in range(3):
        next(chunks)
    chunks.completion_stream.close()


report(
    {
        "chat": chat,
        "stream": stream,
        "tools": tools,
        "stream-tools": stream_tools,
        "json-schema": json_schema,
        "cancel": cancel,
    }
)
