"""LangChain's ChatOpenAI, with messages that name their speaker, as its agents write them."""

from __future__ import annotations

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
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

model = ChatOpenAI(model=MODEL, base_url=BASE_URL, api_key=KEY, max_retries=0)
weather = tool(get_weather)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def chat() -> None:
    messages = [
        HumanMessage(CHAT, name="reader"),
        AIMessage(CHAT_ANSWER, name="researcher"),
        SystemMessage("Be brief."),
        HumanMessage(CHAT),
    ]
    answer = model.invoke(messages).content
    check(answer == CHAT_ANSWER, repr(answer))


def stream() -> None:
    text = "".join(str(chunk.content) for chunk in model.stream(CHAT))
    check(text == CHAT_ANSWER, repr(text))


def second_turn(message: AIMessage) -> None:
    cities = [call["args"] for call in message.tool_calls]
    check(cities == [{"city": "Paris"}, {"city": "Rome"}], f"the arguments are {cities}")
    message.name = "forecaster"  # as an agent with a name does
    results = [weather.invoke(call) for call in message.tool_calls]
    check(all(isinstance(result, ToolMessage) and result.name for result in results), "results have names")
    answer = model.bind_tools([weather]).invoke([HumanMessage(WEATHER_TWICE), message, *results]).content
    check(answer == RESULT_ANSWER, repr(answer))


def tools() -> None:
    second_turn(model.bind_tools([weather]).invoke(WEATHER_TWICE))


def stream_tools() -> None:
    whole = None
    for chunk in model.bind_tools([weather]).stream(WEATHER_TWICE):
        whole = chunk if whole is None else whole + chunk
    second_turn(whole)


def json_schema() -> None:
    for method in ("json_schema", "function_calling"):
        person = model.with_structured_output(Person, method=method).invoke(PERSON)
        check(person == Person(name="Ada", age=36), f"{method}: {person}")


def cancel() -> None:
    chunks = model.stream(CANCEL)
    for _number in range(3):
        next(chunks)
    chunks.close()


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
