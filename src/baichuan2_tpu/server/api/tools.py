"""Functions a model may call: how it is told of them, how it calls them, and how it reads what they return.

Baichuan2 knows no format for calls, so that calls are JSON between marks, as Hermes, Qwen and SmolLM2 write
them; the marks are plain text to the tokenizer. What is said of them is in English and Chinese, and short.
Not here: holding the model to this (``chat_grammar``), reading its calls (``tool_calls``).
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
    "call_begin",
    "callable_tools",
    "calls_text",
    "is_call_forced",
    "parameters",
    "result_text",
    "with_tools",
]

CALL_BEGIN = "<tool_call>["
CALL_END = "]</tool_call>"

_NO_PARAMETERS: Mapping[str, object] = {"type": "object", "properties": {}, "additionalProperties": False}

_TOLD = """\
You can call these functions. 你可以调用以下函数：
{functions}
To call, write 调用格式：
<tool_call>[{{"name": "...", "arguments": {{...}}}}]</tool_call>
Results come in <tool_result>. 结果在 <tool_result> 中给出。"""


def callable_tools(body: ChatRequest) -> list[Tool]:
    """Return the functions an answer may call: none, one or all of those that the client has.

    Raises: ApiError for a choice of what is not there, two functions of one name, or one that takes no
    object.
    """
    tools = body.tools or []
    names = [tool.function.name for tool in tools]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ApiError(f"two tools have the name {twice!r}; give each its own", param="tools")
    for tool in tools:
        if parameters(tool).get("type") != "object":
            raise ApiError(
                f"the parameters of {tool.function.name!r} have the type {parameters(tool).get('type')!r}; "
                "'object' is allowed",
                param="tools",
            )
    return _chosen(body, tools)


def is_call_forced(body: ChatRequest) -> bool:
    """Tell whether an answer is to be calls alone."""
    return body.tool_choice == "required" or isinstance(body.tool_choice, NamedTool)


def parameters(tool: Tool) -> Mapping[str, object]:
    """Return the schema of a function's arguments."""
    given = tool.function.parameters
    return _NO_PARAMETERS if given is None else {"type": "object", **given}


def with_tools(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """Return messages whose system message tells of the tools."""
    if not tools:
        return list(messages)
    told = _TOLD.format(functions="\n".join(_described(tool) for tool in tools))
    if messages[0].role == "system":
        return [Message("system", f"{messages[0].content}\n\n{told}"), *messages[1:]]
    return [Message("system", told), *messages]


def call_begin(name: str) -> str:
    """Return what comes before the arguments of a call; ``}`` comes behind them."""
    return f'{{"name": {json.dumps(name)}, "arguments": '


def calls_text(calls: Sequence[ToolCall]) -> str:
    """Return calls as the model wrote them."""
    written = (f"{call_begin(call.function.name)}{call.function.arguments}}}" for call in calls)
    return CALL_BEGIN + ", ".join(written) + CALL_END


def result_text(name: str, content: str) -> str:
    """Return what a function returned, as the model reads it."""
    return f'<tool_result name="{name}">\n{content}\n</tool_result>'


def _chosen(body: ChatRequest, tools: list[Tool]) -> list[Tool]:
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        name = choice.function.name
        chosen = [tool for tool in tools if tool.function.name == name]
        if not chosen:
            raise ApiError(f"tool_choice names {name!r}, which is not in tools", param="tool_choice")
        return chosen
    if choice == "required" and not tools:
        raise ApiError("tool_choice is 'required' without tools; give some", param="tool_choice")
    return [] if choice == "none" else tools


def _described(tool: Tool) -> str:
    function = tool.function
    told = {"name": function.name, "description": function.description, "parameters": parameters(tool)}
    return json.dumps({name: value for name, value in told.items() if value is not None}, ensure_ascii=False)
