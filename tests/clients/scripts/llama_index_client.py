"""LlamaIndex's OpenAILike."""

from __future__ import annotations

import asyncio

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
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
    get_weather,
    report,
)

model = OpenAILike(
    model=MODEL,
    api_base=BASE_URL,
    api_key=KEY,
    is_chat_model=True,
    is_function_calling_model=True,
    max_retries=0,
)
weather = FunctionTool.from_defaults(get_weather)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def chat() -> None:
    answer = model.chat([ChatMessage(role="user", content=CHAT)]).message.content
    check(answer == CHAT_ANSWER, repr(answer))


def stream() -> None:
    text = "".join(piece.delta or "" for piece in model.stream_chat([ChatMessage(role="user", content=CHAT)]))
    check(text == CHAT_ANSWER, repr(text))


def second_turn(response: object) -> None:
    calls = model.get_tool_calls_from_response(response)
    cities = [call.tool_kwargs for call in calls]
    check(cities == [{"city": "Paris"}, {"city": "Rome"}], f"the arguments are {cities}")
    results = [
        ChatMessage(
            role="tool",
            content=RESULT,
            additional_kwargs={"tool_call_id": call.tool_id, "name": call.tool_name},
        )
        for call in calls
    ]
    history = [ChatMessage(role="user", content=WEATHER_TWICE), response.message, *results]
    answer = model.chat_with_tools([weather], chat_history=history).message.content
    check(answer == RESULT_ANSWER, repr(answer))


def tools() -> None:
    second_turn(model.chat_with_tools([weather], user_msg=WEATHER_TWICE, allow_parallel_tool_calls=True))


def stream_tools() -> None:
    pieces = model.stream_chat_with_tools([weather], user_msg=WEATHER_TWICE, allow_parallel_tool_calls=True)
    *_, last = pieces
    second_turn(last)


def json_schema() -> None:
    person = model.structured_predict(Person, PromptTemplate(PERSON))
    check(person == Person(name="Ada", age=36), str(person))


def cancel() -> None:
    async def leave() -> None:
        pieces = await model.astream_chat([ChatMessage(role="user", content=CANCEL)])
        for _number in range(3):
            await anext(pieces)
        await pieces.aclose()

    asyncio.run(leave())


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
