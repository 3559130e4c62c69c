"""Functions a model may call: how they are described to it, how it calls them, and how it reads results.

Baichuan2 was trained on no format for calls, so calls are JSON between marks, as Hermes, Qwen and SmolLM2
write them; the marks are plain text to the tokenizer. The description is short, in English and Chinese.
Not here: the grammar that the answer follows (``chat_input``), reading the calls (``tool_calls``).
Source: OpenAI's guide to function calling; the ``<tool_call>`` of SmolLM2's and Qwen2.5's chat templates.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from baichuan2_tpu.server.api.schema_chat import ChatRequest, NamedTool, Tool, ToolCall
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.text.messages import Message

__all__ = [
    "CALL_BEGIN",
    "CALL_END",
    "add_tools",
    "call_begin",
    "callable_tools",
    "is_call_forced",
    "parameters",
    "write_calls",
    "write_result",
]

CALL_BEGIN = "<tool_call>["
CALL_END = "]</tool_call>"

_NO_PARAMETERS: Mapping[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}

_INSTRUCTIONS = """\
You can call these functions. 你可以调用以下函数：
{functions}
To call, write 调用格式：
<tool_call>[{{"name": "...", "arguments": {{...}}}}]</tool_call>
Results come in <tool_result>. 结果在 <tool_result> 中给出。"""


def callable_tools(body: ChatRequest) -> list[Tool]:
    """Return the functions that an answer may call: none, one or all of the client's.

    Raises: ApiError for a choice of a missing function, two functions of one name, or parameters that are not
    an object.
    """
    tools = body.tools or []
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ApiError(f"two tools have the name {twice!r}; give each its own name", param="tools")
    for tool in tools:
        if parameters(tool).get("type") != "object":
            raise ApiError(
                f"the parameters of {tool.function.name!r} have the type {parameters(tool).get('type')!r}; "
                "'object' is allowed",
                param="tools",
            )
    return _choose(body, tools)


def is_call_forced(body: ChatRequest) -> bool:
    """Tell whether an answer must consist of calls only."""
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def parameters(tool: Tool) -> Mapping[str, object]:
    """Return the schema of a function's arguments."""
    given = tool.function.parameters
    return _NO_PARAMETERS if given is None else {"type": "object", **given}


def add_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Return messages whose system message describes the tools."""
    if not tools:
        return list(messages)
    instructions = _INSTRUCTIONS.format(functions="\n".join(_describe(tool) for tool in tools))
    if messages[0].role == "system":
        return [Message("system", f"{messages[0].content}\n\n{instructions}"), *messages[1:]]
    return [Message("system", instructions), *messages]


def call_begin(name: str) -> str:
    """Return what comes before the arguments of a call; ``}`` follows them."""
    return f'{{"name": {json.dumps(name)}, "arguments": '


def write_calls(calls: Sequence[ToolCall]) -> str:
    """Return calls as the model writes them."""
    calls_json = (f"{call_begin(call.function.name)}{call.function.arguments or '{}'}}}" for call in calls)
    return CALL_BEGIN + ", ".join(calls_json) + CALL_END


def write_result(name: str, content: str) -> str:
    """Return the result of a function as the model reads it."""
    return f'<tool_result name="{name}">\n{content}\n</tool_result>'


def _choose(body: ChatRequest, tools: list[Tool]) -> list[Tool]:
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        name = choice.function.name
        named = [tool for tool in tools if tool.function.name == name]
        if not named:
            raise ApiError(f"tool_choice names {name!r}; name one of the tools", param="tool_choice")
        return named
    if choice == "required" and not tools:
        raise ApiError("tool_choice is 'required' without tools; give at least one", param="tool_choice")
    return [] if choice == "none" else tools


def _describe(tool: Tool) -> str:
    function = tool.function
    fields = {"name": function.name, "description": function.description, "parameters": parameters(tool)}
    return json.dumps(
        {name: value for name, value in fields.items() if value is not None}, ensure_ascii=False
    )
