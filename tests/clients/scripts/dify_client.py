"""Dify's models for servers that speak OpenAI's API, out of the SDK that its plugins are built on."""

from __future__ import annotations

import json
from typing import Any

from dify_plugin.entities.model.message import (
    AssistantPromptMessage,
    PromptMessageTool,
    SystemPromptMessage,
    ToolPromptMessage,
    UserPromptMessage,
)
from dify_plugin.interfaces.model.openai_compatible.llm import OAICompatLargeLanguageModel
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

model = OAICompatLargeLanguageModel([])
# Where a stream has no usage it counts tokens with GPT-2's vocabulary, which it downloads.
model._get_num_tokens_by_gpt2 = len
function: Any = weather_tool()["function"]
TOOLS = [PromptMessageTool(**function)]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


def ask(messages: list[Any], *, stream: bool = False, **parameters: Any) -> Any:
    credentials = {
        "endpoint_url": BASE_URL,
        "api_key": KEY,
        "mode": "chat",
        "function_calling_type": "tool_call",
        "stream_function_calling": "supported",
        "context_size": "8192",
    }
    tools = parameters.pop("tools", None)
    return model._invoke(
        MODEL, credentials, messages, parameters, tools=tools, stream=stream, user="dify-user"
    )


def chat() -> None:
    model.validate_credentials(MODEL, {"endpoint_url": BASE_URL, "api_key": KEY, "mode": "chat"})
    # Its agents put instructions between the rounds.
    messages = [
        SystemPromptMessage(content="Be brief."),
        UserPromptMessage(content=CHAT),
        AssistantPromptMessage(content=CHAT_ANSWER),
        SystemPromptMessage(content="Use what was found."),
        UserPromptMessage(content=CHAT),
    ]
    answer = ask(messages, temperature=0.7, top_p=1.0).message.content
    check(answer == CHAT_ANSWER, repr(answer))


def stream() -> None:
    pieces = ask([UserPromptMessage(content=CHAT)], stream=True)
    text = "".join(piece.delta.message.content or "" for piece in pieces)
    check(text == CHAT_ANSWER, repr(text))


def second_turn(calls: list[Any]) -> None:
    cities = [json.loads(call.function.arguments) for call in calls]
    check(cities == [{"city": "Paris"}, {"city": "Rome"}], f"the arguments are {cities}")
    results = [
        ToolPromptMessage(content=RESULT, tool_call_id=call.id, name=call.function.name) for call in calls
    ]
    made = AssistantPromptMessage(content="", tool_calls=calls)
    answer = ask([UserPromptMessage(content=WEATHER_TWICE), made, *results], tools=TOOLS).message.content
    check(answer == RESULT_ANSWER, repr(answer))


def tools() -> None:
    second_turn(ask([UserPromptMessage(content=WEATHER_TWICE)], tools=TOOLS).message.tool_calls)


def stream_tools() -> None:
    pieces = ask([UserPromptMessage(content=WEATHER_TWICE)], tools=TOOLS, stream=True)
    second_turn([call for piece in pieces for call in piece.delta.message.tool_calls])


def json_schema() -> None:
    for schema in (SCHEMA, {"name": "person", "schema": SCHEMA}):
        answer = ask(
            [UserPromptMessage(content=PERSON)],
            response_format="json_schema",
            json_schema=json.dumps(schema),
        )
        check(json.loads(answer.message.content) == {"name": "Ada", "age": 36}, repr(answer.message.content))


def cancel() -> None:
    pieces = ask([UserPromptMessage(content=CANCEL)], stream=True)
    for _number in range(3):
        next(pieces)
    pieces.close()


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
