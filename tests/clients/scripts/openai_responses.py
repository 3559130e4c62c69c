"""OpenAI's own client for Python over ``/v1/responses``, whichever version is installed."""

from __future__ import annotations

import json
from typing import Any

from openai import NotFoundError, OpenAI
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
responses = client.responses


class Person(BaseModel):
    name: str
    age: int


def tool(*, strict: bool = False) -> Any:
    """Return the function in the form of responses."""
    function: Any = weather_tool()["function"]
    return {"type": "function", "strict": strict, **function}


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": [{"type": "input_text", "text": text}]}]


def chat() -> None:
    answer = responses.create(model=MODEL, input=CHAT, instructions="Be brief.")
    check(answer.output_text == CHAT_ANSWER, repr(answer.output_text))
    check((answer.status, answer.error) == ("completed", None), str(answer))
    usage = answer.usage
    check(usage is not None and usage.input_tokens_details.cached_tokens >= 0, str(usage))
    cut = responses.create(model=MODEL, input=CHAT, max_output_tokens=3)
    check((cut.status, cut.output_text) == ("incomplete", CHAT_ANSWER[:3]), str(cut))
    check(cut.incomplete_details is not None, "no reason")


def stream() -> None:
    events = list(responses.create(model=MODEL, input=ask(CHAT), stream=True))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    check(text == CHAT_ANSWER, repr(text))
    check([event.sequence_number for event in events] == list(range(len(events))), "wrong numbers")
    kinds = [event.type for event in events if event.type != "response.output_text.delta"]
    check(kinds[:2] == ["response.created", "response.in_progress"], str(kinds))
    check(kinds[-1] == "response.completed", str(kinds))
    with responses.stream(model=MODEL, input=ask(CHAT)) as stream:
        for _event in stream:
            pass
        check(stream.get_final_response().output_text == CHAT_ANSWER, "the final response")


def answer_calls(first: Any, before: list[Any], cities: list[str]) -> None:
    """Check the calls, send them back or refer to them, and check what is said about them."""
    calls = [item for item in first.output if item.type == "function_call"]
    arguments = [json.loads(call.arguments) for call in calls]
    check(arguments == [{"city": city} for city in cities], f"the arguments are {arguments}")
    results = [{"type": "function_call_output", "call_id": call.call_id, "output": RESULT} for call in calls]
    references = [{"type": "item_reference", "id": item.id} for item in first.output]
    for sent_back in (first.output, [item.model_dump() for item in first.output], references):
        second = responses.create(model=MODEL, input=[*before, *sent_back, *results], tools=[tool()])
        check(second.output_text == RESULT_ANSWER, repr(second.output_text))
    second = responses.create(model=MODEL, input=results, previous_response_id=first.id, tools=[tool()])
    check(second.output_text == RESULT_ANSWER, repr(second.output_text))


def tools() -> None:
    before = ask(WEATHER_TWICE)
    answer_calls(responses.create(model=MODEL, input=before, tools=[tool()]), before, ["Paris", "Rome"])


def stream_tools() -> None:
    for strict in (False, True):
        for question, cities in ((WEATHER, ["Paris"]), (WEATHER_TWICE, ["Paris", "Rome"])):
            before = ask(question)
            with responses.stream(model=MODEL, input=before, tools=[tool(strict=strict)]) as events:
                done = [event for event in events if event.type == "response.function_call_arguments.done"]
                first = events.get_final_response()
            check(len(done) == len(cities), f"{len(done)} calls were reported as done")
            answer_calls(first, before, cities)


def json_schema() -> None:
    answer = responses.parse(model=MODEL, input=PERSON, text_format=Person)
    check(answer.output_parsed == Person(name="Ada", age=36), str(answer))
    with responses.stream(model=MODEL, input=PERSON, text_format=Person) as stream:
        parsed = stream.get_final_response().output_parsed
    check(parsed == Person(name="Ada", age=36), str(parsed))


def stored() -> None:
    first = responses.create(model=MODEL, input=CHAT)
    second = responses.create(model=MODEL, input=CHAT, previous_response_id=first.id)
    check(second.output_text == CHAT_ANSWER, repr(second.output_text))
    check(responses.retrieve(second.id).output_text == CHAT_ANSWER, "the stored response")
    items = list(responses.input_items.list(second.id, limit=1, order="asc"))
    check([item.role for item in items] == ["user", "assistant", "user"], str(items))
    responses.delete(first.id)
    try:
        responses.retrieve(first.id)
    except NotFoundError as error:
        check("is not stored" in str(error), str(error))
    else:
        check(False, "a deleted response was found")
    check(responses.create(model=MODEL, input=CHAT, store=False).status == "completed", "not stored")


def cancel() -> None:
    with responses.create(model=MODEL, input=CANCEL, stream=True) as events:
        for number, _event in enumerate(events):
            if number == 8:
                break


report(
    {
        "chat": chat,
        "stream": stream,
        "tools": tools,
        "stream-tools": stream_tools,
        "json-schema": json_schema,
        "stored": stored,
        "cancel": cancel,
    }
)
