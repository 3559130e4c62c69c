"""What four programs send to a server with OpenAI's API, and what has to come back from the acting engine.

The fields are those of the programs' sources in the version that is named with each program, or of requests
that were recorded from the program itself; texts and tools are of our own. Not here: single odd fields and
messages (``variants``), libraries that are run (``environments``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["BUILTIN_TOOLS", "PROGRAMS", "Exchange", "Program", "builtin_tools"]

Fields = Mapping[str, object]

_CHAT = "/v1/chat/completions"
_GREETING = "Hello! How can I help?"
_SUNNY = "It is sunny."
_CITIES = ('{"city": "Paris"}', '{"city": "Rome"}')
_WEATHER = "What is the weather in Paris and Rome?"
_HELLO: Fields = {"role": "user", "content": "Say hello."}
_WITH_USAGE: Fields = {"stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request, and its right answer: a text, the arguments of calls, or both empty where any will do."""

    name: str
    body: Fields | None
    text: str = ""
    arguments: tuple[str, ...] = ()
    ignored: str | None = None
    """What the header ``x-ignored-fields`` has to name."""
    path: str = _CHAT
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class Program:
    """A program in the version whose source was read."""

    name: str
    source: str
    exchanges: tuple[Exchange, ...]


def _system(text: str) -> Fields:
    return {"role": "system", "content": text}


def _user(content: object) -> Fields:
    return {"role": "user", "content": content}


def _weather_tool(description: str = "Get the weather.", **more: object) -> Fields:
    parameters = {
        "type": "object",
        "properties": {"city": {"type": "string", "description": description}},
        "required": ["city"],
    }
    function = {"name": "get_weather", "description": description, "parameters": parameters, **more}
    return {"type": "function", "function": function}


def _calls(*numbers: int) -> list[Fields]:
    functions = ({"name": "get_weather", "arguments": arguments} for arguments in _CITIES)
    calls: list[Fields] = [
        {"id": f"call_{number}", "type": "function", "function": function}
        for number, function in enumerate(functions)
    ]
    return [calls[number] for number in numbers]


def _result(number: int, **more: object) -> Fields:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": "sunny", **more}


def _history(content: str | None) -> list[Fields]:
    """Return a question, the two calls of its answer, and their results."""
    answer = {"role": "assistant", "content": content, "tool_calls": _calls(0, 1)}
    return [_user(_WEATHER), answer, _result(0), _result(1)]


def _open_webui() -> Iterator[Exchange]:
    """Yield what Open WebUI sends: its sampling settings are left out unless the user sets them."""
    yield Exchange("list of models", None, path="/v1/models")

    def ask(*messages: Fields, **more: object) -> Fields:
        return {"stream": True, "model": "{model}", "messages": list(messages), **more}

    yield Exchange("chat", ask(_HELLO), _GREETING)
    yield Exchange("chat with usage", ask(_system("Be brief."), _HELLO, **_WITH_USAGE), _GREETING)
    chosen = {"temperature": 0.7, "top_p": 0.9, "seed": 7, "stop": ["\\n\\n\\n"], "max_tokens": 128}
    ollamas = {"num_ctx": 4096, "repeat_last_n": 64, "tfs_z": 1.0, "mirostat": 0}
    dropped = "num_ctx, repeat_last_n, tfs_z, mirostat"
    yield Exchange(
        "advanced parameters", ask(_HELLO, **chosen, **ollamas, top_k=40), _GREETING, ignored=dropped
    )
    parts = [{"type": "text", "text": "Say hello."}]
    yield Exchange("parts of a text", ask(_user(parts)), _GREETING)
    task = {"model": "{model}", "messages": [_HELLO], "stream": False}
    yield Exchange("title, tags, follow-ups", {**task, "max_tokens": 1000}, _GREETING)
    yield Exchange("search queries", task, _GREETING)
    tools = {"tools": [_weather_tool()]}
    yield Exchange("native tools", ask(_user(_WEATHER), **tools), arguments=_CITIES)
    yield Exchange("results of native tools", ask(*_history(""), **tools), _SUNNY)
    answer = {"role": "assistant", "content": _SUNNY}
    yield Exchange("next question", ask(*_history(""), answer, _HELLO, **tools), _GREETING)
    began = {"role": "assistant", "content": "Hello! "}
    marks = {"continue_final_message": True, "add_generation_prompt": False}
    yield Exchange(
        "answer to continue, of provider llama.cpp",
        ask(_HELLO, began, **marks),
        ignored="continue_final_message, add_generation_prompt",
    )
    yield from _open_webui_responses()


def _open_webui_responses() -> Iterator[Exchange]:
    """Yield what Open WebUI sends to a connection of the type "Responses"."""
    function = {"name": "get_weather", "description": "w", "parameters": {"type": "object", "properties": {}}}
    question = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Say hello."}]}
    body = {"stream": True, "model": "{model}", "input": [question], "instructions": "Be brief."}
    yield Exchange("response", body, _GREETING, path="/v1/responses")
    call = {"type": "function_call", "call_id": "c", "name": "get_weather", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "sunny"}
    tools = [{"type": "function", "strict": False, **function}]
    body = {"stream": True, "model": "{model}", "input": [question, call, result], "tools": tools}
    yield Exchange("response after a call", body, _SUNNY, path="/v1/responses")


def _dify() -> Iterator[Exchange]:
    """Yield what Dify's plugin "OpenAI-API-compatible" was recorded to send."""
    user = {"user": "0f8fad5b-d9cb-469f-a165-70867728950e"}
    headers = {"Accept-Charset": "utf-8", "Authorization": "Bearer none"}
    check = {"model": "{model}", "max_tokens": 5, "messages": [_user("ping")]}
    yield Exchange("check of the credentials", check, _GREETING[:5])

    def ask(*messages: Fields, **more: object) -> Fields:
        return {"model": "{model}", **_WITH_USAGE, "messages": list(messages), **user, **more}

    settings = {"temperature": 0.7, "max_tokens": 512, "top_p": 0.9}
    penalties = {"frequency_penalty": 0, "presence_penalty": 0}
    asked = ask(_system("Be brief."), _HELLO, **settings, **penalties)
    yield Exchange("chat", asked, _GREETING, headers=headers)
    yield Exchange("whole answer", {"model": "{model}", "stream": False, "messages": [_HELLO]}, _GREETING)
    tools = {"tool_choice": "auto", "tools": [_weather_tool("")]}
    yield Exchange("agent", ask(_system("Be brief."), _user(_WEATHER), **tools), arguments=_CITIES)
    rounds = [
        message
        for number in (0, 1)
        for message in (
            {"role": "assistant", "content": "", "tool_calls": _calls(number)},
            _result(number),
        )
    ]
    yield Exchange("agent, one round per result", ask(_user(_WEATHER), *rounds, **tools), _SUNNY)
    between = [_user(_WEATHER), *rounds, _system("Use the results."), _user("<tool_result>sunny")]
    yield Exchange("agent with instructions between rounds", ask(*between, **tools), _SUNNY)
    schema = {"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}
    person = {"type": "json_schema", "json_schema": {"name": "p", "schema": {**schema, "required": ["name"]}}}
    asked = {"model": "{model}", "stream": False, "messages": [_user("Describe Ada.")]}
    yield Exchange("object by a schema", {**asked, "response_format": person}, '{"name": "Ada", "age": 36}')
    thoughts = {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": False}}
    dropped = "enable_thinking, chat_template_kwargs"
    yield Exchange("thinking is off", ask(_HELLO, **thoughts), _GREETING, ignored=dropped)


def _maxkb() -> Iterator[Exchange]:
    """Yield what MaxKB's models of OpenAI and vLLM were recorded to send, with its default parameters."""
    settings = {**_WITH_USAGE, "temperature": 0.7, "max_tokens": 800}

    def ask(*messages: Fields, **more: object) -> Fields:
        return {"messages": list(messages), "model": "{model}", **settings, **more}

    key = {"Authorization": "Bearer none"}
    yield Exchange("list of models (vLLM)", None, path="/v1/models", headers=key)
    yield Exchange("check of the model", ask(_user("您好")), _GREETING, headers=key)
    said = {"role": "assistant", "content": _GREETING}
    yield Exchange("chat", ask(_system("你是知识库助手。"), _HELLO, said, _HELLO), _GREETING)
    tools = {"tools": [_weather_tool()]}
    yield Exchange("tools of an MCP server", ask(_user(_WEATHER), **tools), arguments=_CITIES)
    yield Exchange("results of an MCP server", ask(*_history(None), **tools), _SUNNY)


def _continue() -> Iterator[Exchange]:
    """Yield what the CLI was recorded to send and what the extension's source makes for editors."""
    key = {"Authorization": "Bearer none", "x-api-key": "none", "api-key": "none"}
    yield Exchange("list of models", None, path="/v1/models", headers=key)

    def ask(*messages: Fields, **more: object) -> Fields:
        return {"model": "{model}", "messages": list(messages), "stream": True, "max_tokens": 1024, **more}

    usage = {"stream_options": {"include_usage": True}}
    rules = _system("You are in agent mode.")
    tools = {"tools": [_weather_tool()]}
    yield Exchange("question to the CLI", ask(rules, _HELLO, **tools, **usage), _GREETING, headers=key)
    yield Exchange("tool of the CLI", ask(rules, _user(_WEATHER), **tools, **usage), arguments=_CITIES)
    yield Exchange("result for the CLI", ask(rules, *_history(""), **tools, **usage), _SUNNY)
    serial = {"tools": [_weather_tool(strict=False)], "parallel_tool_calls": False}
    asked = ask(_user("What is the weather in Paris?"), **serial)
    yield Exchange("tool of the extension", asked, arguments=_CITIES[:1])
    parts = [{"type": "text", "text": "Say hello."}]
    yield Exchange("question with context", ask(rules, _user(parts)), _GREETING)
    marks = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>", "</fim_middle>"]
    stop = [*marks, "</code>", "/src/", "#- coding: utf-8", "```"]
    code = {
        "model": "{model}",
        "max_tokens": 16,
        "temperature": 0.01,
        "stream": True,
        "stop": stop,
        "prompt": "<fim_prefix>def add(a, b):\n    return <fim_suffix>\n<fim_middle>",
    }
    yield Exchange("autocompletion", code, "." * 16, path="/v1/completions", headers=key)


PROGRAMS = (
    Program("Open WebUI", "open-webui 0.12.4 on PyPI: routers/openai.py, tasks.py", (*_open_webui(),)),
    Program("Dify", "openai_api_compatible 0.0.63 with dify_plugin 0.10.2", (*_dify(),)),
    Program("MaxKB", "1Panel-dev/MaxKB 121614f, after v2.1.0", (*_maxkb(),)),
    Program("Continue", "@continuedev/cli 1.5.47; continuedev/continue d0a3c0b", (*_continue(),)),
)

BUILTIN_TOOLS: Mapping[str, Sequence[str]] = {
    "get_current_timestamp": (),
    "calculate_timestamp": ("days_ago", "weeks_ago", "months_ago", "years_ago"),
    "ask_user": ("questions", "allow_other", "timeout_ms"),
    "list_knowledge_bases": ("count", "skip"),
    "search_knowledge_bases": ("query", "count", "skip"),
    "query_knowledge_bases": ("query", "count"),
    "grep_knowledge_files": ("pattern", "file_id", "case_insensitive", "count_only"),
    "search_knowledge_files": ("query", "knowledge_id", "count", "skip"),
    "query_knowledge_files": ("query", "knowledge_ids", "count"),
    "view_knowledge_file": ("file_id", "offset", "max_chars", "line_numbers", "start_line", "end_line"),
    "search_chats": ("query", "count", "start_timestamp", "end_timestamp"),
    "view_chat": ("chat_id",),
    "search_memories": ("query", "count", "type", "path", "memory_id"),
    "list_memory_paths": ("query", "count", "type"),
    "read_memory_path": ("path", "count", "type", "include_children"),
    "list_memories": (),
    "update_memory": ("operations",),
    "add_memory": ("content", "type", "path"),
    "replace_memory_content": ("memory_id", "content", "type", "path"),
    "delete_memory": ("memory_id",),
    "search_notes": ("query", "count", "start_timestamp", "end_timestamp"),
    "view_note": ("note_id",),
    "write_note": ("title", "content"),
    "replace_note_content": ("note_id", "content", "operations", "title"),
    "create_skill": ("id", "name", "content", "files", "commit_message"),
    "create_tasks": ("tasks",),
    "update_task": ("id", "status"),
    "create_automation": ("name", "prompt", "rrule", "folder_id"),
    "update_automation": ("automation_id", "name", "prompt", "rrule", "model_id", "folder_id"),
    "list_automations": ("status", "folder_id", "count"),
    "toggle_automation": ("automation_id",),
    "delete_automation": ("automation_id",),
    "search_calendar_events": ("query", "start", "end", "count"),
    "create_calendar_event": ("title", "start", "end", "description", "location", "reminder_minutes"),
    "update_calendar_event": ("event_id", "title", "description", "start", "end", "location"),
    "delete_calendar_event": ("event_id",),
}
"""The tools that Open WebUI 0.12.4 offers with its own settings, and their arguments."""

_DESCRIPTION = "What it is for, when it is of use, and what it returns, in sentences. " * 6
"""With it the tools are 26,000 characters, as Open WebUI's are: 6,780 of Baichuan2's tokens."""


def builtin_tools() -> list[Fields]:
    """Return the tools with descriptions that are about as long as Open WebUI's."""
    functions = (
        {"name": name, "description": _DESCRIPTION, "parameters": _texts(arguments)}
        for name, arguments in BUILTIN_TOOLS.items()
    )
    return [{"type": "function", "function": function} for function in functions]


def _texts(names: Sequence[str]) -> Fields:
    """Return the schema of an object of texts."""
    return {"type": "object", "properties": {name: {"type": "string", "description": name} for name in names}}
