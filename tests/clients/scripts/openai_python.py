"""OpenAI's own client for Python, whichever version is installed."""

from __future__ import annotations

import json
from typing import Any

from openai import OpenAI
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
    WEATHER,
    WEATHER_TWICE,
    check,
    report,
    weather_tool,
)

client = OpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
chats = client.chat.completions


class Person(BaseModel):
    name: str
    age: int


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def chat() -> None:
    answer = chats.create(model=MODEL, messages=ask(CHAT)).choices[0].message.content
    check(answer == CHAT_ANSWER, repr(answer))


def stream() -> None:
    chunks = chats.create(model=MODEL, messages=ask(CHAT), stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    check(text == CHAT_ANSWER, repr(text))


def answer_calls(messages: list[Any], message: Any, cities: list[str]) -> None:
    """Check the calls, send them back with their results, and check what is said about them."""
    calls = message.tool_calls or []
    arguments = [json.loads(call.function.arguments) for call in calls]
    check(arguments == [{"city": city} for city in cities], f"the arguments are {arguments}")
    check(all(call.function.name == "get_weather" for call in calls), "wrong names")
    # Sent back both as the client's own object and with every field written out.
    for sent_back in (message, message.model_dump()):
        results = [{"role": "tool", "tool_call_id": call.id, "content": RESULT} for call in calls]
        second = chats.create(model=MODEL, messages=[*messages, sent_back, *results], tools=[weather_tool()])
        answer = second.choices[0].message.content
        check(answer == RESULT_ANSWER, repr(answer))


def tools() -> None:
    messages = ask(WEATHER_TWICE)
    first = chats.create(model=MODEL, messages=messages, tools=[weather_tool()])
    answer_calls(messages, first.choices[0].message, ["Paris", "Rome"])


def stream_tools() -> None:
    for strict in (False, True):
        for question, cities in ((WEATHER, ["Paris"]), (WEATHER_TWICE, ["Paris", "Rome"])):
            messages = ask(question)
            with chats.stream(model=MODEL, messages=messages, tools=[weather_tool(strict=strict)]) as events:
                done = [event for event in events if event.type == "tool_calls.function.arguments.done"]
                message = events.get_final_completion().choices[0].message
            check(len(done) == len(cities), f"{len(done)} calls were reported as done")
            answer_calls(messages, message, cities)


def json_schema() -> None:
    answer = chats.parse(model=MODEL, messages=ask(PERSON), response_format=Person)
    check(answer.choices[0].message.parsed == Person(name="Ada", age=36), str(answer))
    messages = [*ask(PERSON), answer.choices[0].message.model_dump(), *ask(CHAT)]
    check(
        chats.create(model=MODEL, messages=messages).choices[0].message.content == CHAT_ANSWER, "second turn"
    )


def cancel() -> None:
    with chats.create(model=MODEL, messages=ask(CANCEL), stream=True) as chunks:
        for number, _chunk in enumerate(chunks):
            if number == 3:
                break


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
