"""Pydantic AI's agents over OpenAI's chat completions."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from scenarios import (
    BASE_URL,
    CANCEL,
    CHAT,
    CHAT_ANSWER,
    KEY,
    MODEL,
    PERSON,
    RESULT_ANSWER,
    WEATHER_TWICE,
    check,
    get_weather,
    report,
)

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=BASE_URL, api_key=KEY))


class Person(BaseModel):
    name: str
    age: int


async def chat() -> None:
    agent = Agent(model, instructions="Be brief.")
    first = await agent.run(CHAT)
    second = await agent.run(CHAT, message_history=first.all_messages())
    check(first.output == second.output == CHAT_ANSWER, repr(second.output))


async def stream() -> None:
    async with Agent(model).run_stream(CHAT) as result:
        text = "".join([piece async for piece in result.stream_text(delta=True)])
    check(text == CHAT_ANSWER, repr(text))


async def tools() -> None:
    answer = (await Agent(model, tools=[get_weather]).run(WEATHER_TWICE)).output
    check(answer == RESULT_ANSWER, repr(answer))


async def stream_tools() -> None:
    async with Agent(model, tools=[get_weather]).run_stream(WEATHER_TWICE) as result:
        answer = await result.get_output()
    check(answer == RESULT_ANSWER, repr(answer))


async def json_schema() -> None:
    for output in (Person, NativeOutput(Person)):
        person = (await Agent(model, output_type=output).run(PERSON)).output
        check(person == Person(name="Ada", age=36), str(person))


async def cancel() -> None:
    async with Agent(model).run_stream(CANCEL) as result:
        async for _piece in result.stream_text(delta=True, debounce_by=None):
            await result.cancel() if hasattr(result, "cancel") else None
            break


report(
    {
        "chat": lambda: asyncio.run(chat()),
        "stream": lambda: asyncio.run(stream()),
        "tools": lambda: asyncio.run(tools()),
        "stream-tools": lambda: asyncio.run(stream_tools()),
        "json-schema": lambda: asyncio.run(json_schema()),
        "cancel": lambda: asyncio.run(cancel()),
    }
)
