"""AutoGen's agents, which name the speaker of every message."""

from __future__ import annotations

import asyncio

from autogen_agentchat.agents import AssistantAgent
from autogen_core import CancellationToken
from autogen_core.models import ModelFamily, UserMessage
from autogen_ext.models.openai import OpenAIChatCompletionClient
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


class Person(BaseModel):
    name: str
    age: int


def new_model() -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
        model=MODEL,
        base_url=BASE_URL,
        api_key=KEY,
        max_retries=0,
        model_info={
            "vision": False,
            "function_calling": True,
            "json_output": True,
            "structured_output": True,
            "multiple_system_messages": True,
            "family": ModelFamily.UNKNOWN,
        },
    )


async def run(question: str, **more: object) -> object:
    agent = AssistantAgent("forecaster", new_model(), system_message="Be brief.", **more)
    return (await agent.run(task=question)).messages[-1].content


async def chat() -> None:
    answer = await run(CHAT)
    check(answer == CHAT_ANSWER, repr(answer))


async def stream() -> None:
    answer = await run(CHAT, model_client_stream=True)
    check(answer == CHAT_ANSWER, repr(answer))


async def tools() -> None:
    answer = await run(WEATHER_TWICE, tools=[get_weather], reflect_on_tool_use=True)
    check(answer == RESULT_ANSWER, repr(answer))


async def stream_tools() -> None:
    more = {"tools": [get_weather], "reflect_on_tool_use": True, "model_client_stream": True}
    answer = await run(WEATHER_TWICE, **more)
    check(answer == RESULT_ANSWER, repr(answer))


async def json_schema() -> None:
    answer = await run(PERSON, output_content_type=Person)
    check(answer == Person(name="Ada", age=36), str(answer))


async def cancel() -> None:
    token = CancellationToken()
    pieces = new_model().create_stream([UserMessage(content=CANCEL, source="user")], cancellation_token=token)
    try:
        for _number in range(3):
            await anext(pieces)
        token.cancel()
        async for _piece in pieces:
            pass
    except asyncio.CancelledError:
        pass
    await pieces.aclose()


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
