"""The OpenAI Agents SDK, over chat completions."""

from __future__ import annotations

import asyncio

from agents import Agent, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from pydantic import BaseModel
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

set_tracing_disabled(disabled=True)
weather = function_tool(get_weather)


class Person(BaseModel):
    name: str
    age: int


def new_agent(**more: object) -> Agent:
    client = AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
    return Agent(
        "forecaster", instructions="Be brief.", model=OpenAIChatCompletionsModel(MODEL, client), **more
    )


async def chat() -> None:
    first = await Runner.run(new_agent(), CHAT)
    history = [*first.to_input_list(), {"role": "user", "content": CHAT}]
    second = await Runner.run(new_agent(), history)
    check(first.final_output == second.final_output == CHAT_ANSWER, repr(second.final_output))


async def run_streamed(question: str, **more: object) -> str:
    result = Runner.run_streamed(new_agent(**more), question)
    async for _event in result.stream_events():
        pass
    return result.final_output


async def stream() -> None:
    answer = await run_streamed(CHAT)
    check(answer == CHAT_ANSWER, repr(answer))


async def tools() -> None:
    answer = (await Runner.run(new_agent(tools=[weather]), WEATHER_TWICE)).final_output
    check(answer == RESULT_ANSWER, repr(answer))


async def stream_tools() -> None:
    answer = await run_streamed(WEATHER_TWICE, tools=[weather])
    check(answer == RESULT_ANSWER, repr(answer))


async def json_schema() -> None:
    person = (await Runner.run(new_agent(output_type=Person), PERSON)).final_output
    check(person == Person(name="Ada", age=36), str(person))


async def cancel() -> None:
    result = Runner.run_streamed(new_agent(), CANCEL)
    count = 0
    async for _event in result.stream_events():
        count += 1
        if count == 5:
            result.cancel()


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
