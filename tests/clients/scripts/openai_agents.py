"""The OpenAI Agents SDK, over chat completions and over responses, its default."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from agents import (
    Agent,
    Model,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
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


class Scenarios:
    """What agents of one kind of model are asked to do."""

    def __init__(self, kind: Callable[[str, AsyncOpenAI], Model]) -> None:
        self._kind = kind

    def agent(self, **more: object) -> Agent:
        client = AsyncOpenAI(base_url=BASE_URL, api_key=KEY, max_retries=0)
        return Agent("forecaster", instructions="Be brief.", model=self._kind(MODEL, client), **more)

    async def chat(self) -> None:
        first = await Runner.run(self.agent(), CHAT)
        history = [*first.to_input_list(), {"role": "user", "content": CHAT}]
        second = await Runner.run(self.agent(), history)
        check(first.final_output == second.final_output == CHAT_ANSWER, repr(second.final_output))

    async def stream(self) -> None:
        answer = await self._run_streamed(CHAT)
        check(answer == CHAT_ANSWER, repr(answer))

    async def tools(self) -> None:
        answer = (await Runner.run(self.agent(tools=[weather]), WEATHER_TWICE)).final_output
        check(answer == RESULT_ANSWER, repr(answer))

    async def stream_tools(self) -> None:
        answer = await self._run_streamed(WEATHER_TWICE, tools=[weather])
        check(answer == RESULT_ANSWER, repr(answer))

    async def json_schema(self) -> None:
        person = (await Runner.run(self.agent(output_type=Person), PERSON)).final_output
        check(person == Person(name="Ada", age=36), str(person))

    async def stored(self) -> None:
        """Let the server keep the conversation, between the steps of a run and between runs."""
        more = {"auto_previous_response_id": True}
        first = await Runner.run(self.agent(tools=[weather]), WEATHER_TWICE, **more)
        check(first.final_output == RESULT_ANSWER, repr(first.final_output))
        second = await Runner.run(self.agent(), CHAT, previous_response_id=first.last_response_id)
        check(second.final_output == CHAT_ANSWER, repr(second.final_output))

    async def cancel(self) -> None:
        result = Runner.run_streamed(self.agent(), CANCEL)
        count = 0
        async for _event in result.stream_events():
            count += 1
            if count == 8:
                result.cancel()

    async def _run_streamed(self, question: str, **more: object) -> str:
        result = Runner.run_streamed(self.agent(**more), question)
        async for _event in result.stream_events():
            pass
        return result.final_output


def runner(scenario: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    return lambda: asyncio.run(scenario())


chats, responses = Scenarios(OpenAIChatCompletionsModel), Scenarios(OpenAIResponsesModel)
NAMES = ("chat", "stream", "tools", "stream-tools", "json-schema", "cancel")
report(
    {name: runner(getattr(chats, name.replace("-", "_"))) for name in NAMES}
    | {f"responses-{name}": runner(getattr(responses, name.replace("-", "_"))) for name in (*NAMES, "stored")}
)
