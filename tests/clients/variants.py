"""Requests as ordinary clients really send them, each with what is right for it.

"answer" is right where a request asks for nothing that a text model cannot do, "refuse" where an answer would
pretend that it did, "either" where servers differ in good faith. Each stands for its kind; the programs that
send it are named where they are not obvious.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Literal

import httpx

__all__ = ["VARIANTS", "Right", "Variant", "judge", "send"]

Right = Literal["answer", "refuse", "either"]

_JSON: Mapping[str, str] = {"Content-Type": "application/json"}
_CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Variant:
    """One request; ``{model}`` in its path and body stands for the served model."""

    name: str
    right: Right
    body: object = None
    method: str = "POST"
    path: str = _CHAT
    headers: Mapping[str, str] = field(default_factory=lambda: _JSON)

    def content(self, model: str) -> bytes:
        """Return the bytes to send."""
        if self.body is None:
            return b""
        text = self.body if isinstance(self.body, str) else json.dumps(self.body, ensure_ascii=False)
        return text.replace("{model}", model).encode()


def send(client: httpx.Client, variant: Variant, model: str) -> httpx.Response:
    """Send a variant as it is; nothing of its path is tidied."""
    path = variant.path.replace("{model}", model)
    url = client.base_url.copy_with(raw_path=path.encode())
    content = variant.content(model) or None
    return client.request(variant.method, url, content=content, headers=dict(variant.headers))


def judge(variant: Variant, status: int, body: bytes) -> bool:
    """Tell whether a response is right: a status of success, or a refusal with a message for people."""
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED:
        return False
    if status < 300:
        return variant.right != "refuse"
    return variant.right != "answer" and (variant.method == "HEAD" or _has_message(body))


def _has_message(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return False
    message = error["message"] if isinstance(error, dict) else error
    return isinstance(message, str) and bool(message)


_ASK = {"role": "user", "content": "Say ok."}
_SAID = {"role": "assistant", "content": "ok"}
_FUNCTION: Mapping[str, object] = {
    "name": "find_book",
    "description": "Find a book by its title.",
    "parameters": {"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]},
}
_TOOL: Mapping[str, object] = {"type": "function", "function": _FUNCTION}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def _chat(name: str, *messages: object, right: Right = "answer", **fields: object) -> Variant:
    body = {"model": "{model}", "messages": list(messages) or [_ASK], "max_tokens": 4, **fields}
    return Variant(name, right, body)


def _system(text: str, role: str = "system", **fields: object) -> dict[str, object]:
    return {"role": role, "content": text, **fields}


def _user(content: object, **fields: object) -> dict[str, object]:
    return {"role": "user", "content": content, **fields}


def _assistant(content: object = "ok", **fields: object) -> dict[str, object]:
    return {"role": "assistant", "content": content, **fields}


def _text(text: str = "Say ok.", **fields: object) -> dict[str, object]:
    return {"type": "text", "text": text, **fields}


def _messages() -> Iterator[Variant]:
    """Yield what conversations look like."""
    yield _chat("plain question", _user("Say ok."))
    yield _chat("system and question", _system("Be brief."), _ASK)
    yield _chat("developer message", _system("Be brief.", "developer"), _ASK)
    yield _chat("content as one part", _user([_text()]))
    yield _chat("content as several parts", _user([_text("Say "), _text("ok.")]))
    yield _chat("an empty part", _user([_text(), _text("")]))
    yield _chat("no parts", _user([]))
    yield _chat("system content as parts", {"role": "system", "content": [_text("Be brief.")]}, _ASK)
    yield _chat("name of a user (AutoGen)", _user("Say ok.", name="user_proxy"))
    yield _chat("name of an assistant", _ASK, _assistant(name="critic"), _ASK)
    yield _chat("name of a system message", _system("Be brief.", name="setup"), _ASK)
    yield _chat(
        "three system messages in front", _system("Be brief."), _system("Be kind."), _system("Hi."), _ASK
    )
    yield _chat("system message between rounds (Dify)", _ASK, _SAID, _system("Be brief."), _ASK)
    yield _chat("system message after the question", _ASK, _system("Answer in French."))
    yield _chat("developer after system", _system("Be brief."), _system("Be kind.", "developer"), _ASK)
    yield _chat("empty system message", _system(""), _ASK)
    yield _chat("greeting in front", _assistant("Welcome!"), _ASK)
    yield _chat("greeting after a system message", _system("Be brief."), _assistant("Welcome!"), _ASK)
    yield _chat("two questions in a row", _user("Wait."), _ASK)
    yield _chat("three questions in a row", _user("Wait."), _user("Now."), _ASK)
    yield _chat("two answers in a row", _ASK, _SAID, _assistant("And more."), _ASK)
    yield _chat("empty question (a button)", _system("Greet the user."), _user(""))
    yield _chat("question of a space", _user(" "))


def _history() -> Iterator[Variant]:
    """Yield what clients keep of earlier answers."""
    yield _chat("empty answer in the history", _ASK, _assistant(""), _ASK)
    yield _chat("null answer in the history", _ASK, _assistant(None), _ASK)
    yield _chat("answer without content", _ASK, {"role": "assistant"}, _ASK)
    yield _chat("null content of a question", _user(None), right="either")
    yield _chat("only a system message", _system("Say ok."))
    yield _chat("answer to continue", _ASK, _assistant("Well,"))
    yield _chat("answer to continue, marked (DeepSeek)", _ASK, _assistant("Well,", prefix=True))
    yield _chat(
        "answer with OpenAI's null fields",
        _ASK,
        _assistant(refusal=None, audio=None, function_call=None, tool_calls=None, annotations=None),
        _ASK,
    )
    yield _chat("answer with empty lists", _ASK, _assistant(annotations=[], tool_calls=[]), _ASK)
    yield _chat("answer with its thoughts", _ASK, _assistant(reasoning_content="The user wants ok."), _ASK)
    yield _chat(
        "answer with thoughts as OpenRouter", _ASK, _assistant(reasoning=None, reasoning_details=[]), _ASK
    )
    yield _chat("answer with a parsed object", _ASK, _assistant('{"a": 1}', parsed={"a": 1}), _ASK)
    yield _chat("answer with a refusal", _ASK, _assistant(None, refusal="I would rather not."), _ASK)
    yield _chat("part of a refusal", _ASK, _assistant([{"type": "refusal", "refusal": "No."}]), _ASK)
    yield _chat("answer with the index of its choice", _ASK, _assistant(index=0), _ASK)
    yield _chat("message with an id and a time", _user("Say ok.", id="m-1", timestamp=1764500000))


def _parts() -> Iterator[Variant]:
    """Yield parts of contents, and what no conversation looks like."""
    yield _chat("cache mark on a part", _user([_text(cache_control={"type": "ephemeral"})]))
    yield _chat("cache mark on a message", _user("Say ok.", cache_control={"type": "ephemeral"}))
    yield _chat(
        "cache mark on a system part", {"role": "system", "content": [_text("Hi.", cache_control={})]}, _ASK
    )
    yield _chat("part with annotations", _user([_text(annotations=[])]))
    yield _chat("Chinese and an emoji", _user("你好,请说“好”。🙂"))
    yield _chat("a thousand spaces", _user(" " * 1000))
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
    yield _chat("picture", _user([_text(), picture]), right="refuse")
    sound = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    yield _chat("sound", _user([_text(), sound]), right="refuse")
    yield _chat("file", _user([_text(), {"type": "file", "file": {"file_id": "file-1"}}]), right="refuse")
    yield _chat("unknown role", {"role": "narrator", "content": "Once."}, _ASK, right="either")
    yield _chat("content of a number", _user(5), right="refuse")
    yield _chat("message without role", {"content": "Say ok."}, right="refuse")
    yield Variant("no messages", "refuse", {"model": "{model}", "messages": [], "max_tokens": 4})
    yield Variant("messages left out", "refuse", {"model": "{model}", "max_tokens": 4})


def _call(arguments: object = '{"title": "Ulysses"}', **fields: object) -> dict[str, object]:
    return {
        "id": "call_7",
        "type": "function",
        "function": {"name": "find_book", "arguments": arguments},
        **fields,
    }


def _result(content: object = "Shelf 4", **fields: object) -> dict[str, object]:
    return {"role": "tool", "tool_call_id": "call_7", "content": content, **fields}


def _tools() -> Iterator[Variant]:
    """Yield what tools and their history look like."""
    history = [_ASK, _assistant(None, tool_calls=[_call()])]
    yield _chat("tools offered", tools=[_TOOL])
    yield _chat("empty list of tools", tools=[])
    yield _chat("null tools", tools=None, tool_choice=None)
    yield _chat("tool without parameters", tools=[{"type": "function", "function": {"name": "now"}}])
    yield _chat(
        "tool with empty parameters",
        tools=[{"type": "function", "function": {"name": "n", "parameters": {}}}],
    )
    yield _chat("strict tool", tools=[{**_TOOL, "function": {**_FUNCTION, "strict": True}}])
    yield _chat("tool with null strict", tools=[{**_TOOL, "function": {**_FUNCTION, "strict": None}}])
    yield _chat("tool with more fields", tools=[{**_TOOL, "cache_control": {"type": "ephemeral"}}])
    yield _chat("choice none with tools", tools=[_TOOL], tool_choice="none")
    yield _chat("choice auto without tools", tool_choice="auto")
    yield _chat("choice none without tools", tool_choice="none")
    yield _chat(
        "forced tool", tools=[_TOOL], tool_choice={"type": "function", "function": {"name": "find_book"}}
    )
    yield _chat("parallel calls without tools", parallel_tool_calls=True)
    yield _chat("no parallel calls", tools=[_TOOL], parallel_tool_calls=False)
    yield _chat("null functions of old clients", functions=None, function_call=None)
    yield _chat("empty functions of old clients", functions=[], function_call="none")
    yield _chat("call and result", *history, _result(), tools=[_TOOL])
    yield _chat("call and result without tools", *history, _result())
    yield _chat("result with a name (LiteLLM)", *history, _result(name="find_book"), tools=[_TOOL])
    yield _chat("result as parts", *history, _result([_text("Shelf 4")]), tools=[_TOOL])
    yield _chat("empty result", *history, _result(""), tools=[_TOOL])
    yield _chat("result with a status", *history, _result(status="success", artifact=None), tools=[_TOOL])
    yield _chat("null result", *history, _result(None), right="either", tools=[_TOOL])
    indexed = [_ASK, _assistant("", tool_calls=[_call(index=0)])]
    yield _chat("call with its index", *indexed, _result(), tools=[_TOOL])
    function = {"name": "find_book", "arguments": '{"title": "Ulysses"}'}
    parsed = _call(function={**function, "parsed_arguments": {"title": "Ulysses"}})
    yield _chat(
        "call with parsed arguments", _ASK, _assistant(None, tool_calls=[parsed]), _result(), tools=[_TOOL]
    )
    bare = {name: value for name, value in _call().items() if name != "type"}
    yield _chat("call without its type", _ASK, _assistant(None, tool_calls=[bare]), _result(), tools=[_TOOL])
    yield _chat(
        "text beside a call", _ASK, _assistant("I look.", tool_calls=[_call()]), _result(), tools=[_TOOL]
    )
    yield _chat("empty arguments", _ASK, _assistant(None, tool_calls=[_call("")]), _result(), tools=[_TOOL])
    yield _chat(
        "arguments as an object", _ASK, _assistant(None, tool_calls=[_call({})]), _result(), right="either"
    )
    yield _chat("question after a result", *history, _result(), _user("Thanks."), tools=[_TOOL])
    yield _chat("call that nobody answered", *history, _user("Never mind."), tools=[_TOOL])
    yield _chat("result whose call was cut off", _result(), _ASK, right="either")
    yield _chat("two tools of one name", right="either", tools=[_TOOL, _TOOL])


def _settings() -> Iterator[Variant]:
    """Yield settings that are honoured, and values of no effect."""
    yield _chat("limit -1 (LM Studio, Continue)", max_tokens=-1, stop=["."])
    yield _chat("limit as 4.0", max_tokens=4.0)
    yield _chat("limit null", max_tokens=None, stop=["."])
    yield _chat("new name of the limit", max_tokens=None, max_completion_tokens=4)
    yield _chat("both limits, equal", max_completion_tokens=4)
    yield _chat("limit as n_predict", max_tokens=None, n_predict=4)
    yield _chat("limit 0", right="either", max_tokens=0)
    yield _chat("temperature 0", temperature=0)
    yield _chat("temperature null", temperature=None, top_p=None, n=None, stop=None, seed=None)
    yield _chat("OpenAI's defaults", temperature=1, top_p=1, n=1, presence_penalty=0, frequency_penalty=0)
    yield _chat("top_k -1 (vLLM)", top_k=-1)
    yield _chat("top_k 0", top_k=0)
    yield _chat("top_k as 40.0", top_k=40.0)
    yield _chat("min_p and repetition_penalty", min_p=0.05, repetition_penalty=1.1)
    yield _chat("llama.cpp's repeat_penalty", repeat_penalty=1.1)
    yield _chat("seed", seed=42)
    yield _chat("seed -1", seed=-1)
    yield _chat("one stop string", stop="\n")
    yield _chat("no stop strings", stop=[])
    yield _chat("empty stop string", right="either", stop="")
    yield _chat("empty bias", logit_bias={})
    yield _chat("bias of a token", logit_bias={"42": -100})
    yield _chat("bias of an unknown token", right="refuse", logit_bias={"99999999": 5})
    yield _chat("no log probabilities", logprobs=False, top_logprobs=None)
    yield _chat("log probabilities", logprobs=True, top_logprobs=2)


def _streams_and_formats() -> Iterator[Variant]:
    """Yield streams, ends of answers, and forms of answers."""
    yield _chat("stream left null", stream=None, stream_options=None)
    yield _chat("stream", stream=True)
    yield _chat("stream with its usage", stream=True, stream_options={"include_usage": True})
    yield _chat("stream options of vLLM", stream=True, stream_options={"continuous_usage_stats": False})
    yield _chat("stream options without a stream", stream=False, stream_options={"include_usage": True})
    yield _chat("user and cache key", user="u-1", prompt_cache_key="k", safety_identifier="s")
    yield _chat("ignore_eos", ignore_eos=True)
    yield _chat("ignore_eos off", ignore_eos=False)
    yield _chat("min_tokens", min_tokens=2)
    yield _chat("min_tokens 0", min_tokens=0)
    yield _chat("stop_token_ids", stop_token_ids=[5])
    yield _chat("no stop_token_ids", stop_token_ids=[])
    yield _chat("text format", response_format={"type": "text"})
    yield _chat("JSON object", _user("An object as JSON."), response_format={"type": "json_object"})
    schema = {"name": "thing", "schema": _SCHEMA}
    yield _chat("JSON schema", response_format={"type": "json_schema", "json_schema": schema})
    strict = {"name": "thing", "schema": _SCHEMA, "strict": True, "description": None}
    yield _chat("strict JSON schema", response_format={"type": "json_schema", "json_schema": strict})
    yield _chat("null format", response_format=None)
    yield _chat("schema beside json_object", response_format={"type": "json_object", "schema": _SCHEMA})
    yield _chat("bare schema (Dify)", response_format={"type": "json_schema", "json_schema": _SCHEMA})
    ahead = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(?!x)[a-z]+$"}}}
    format_ahead = {"type": "json_schema", "json_schema": {"name": "t", "schema": ahead}}
    yield _chat("schema with a look-ahead", right="either", response_format=format_ahead)
    yield _chat("temperature as text", right="either", temperature="0.5")
    yield _chat("temperature of a word", right="refuse", temperature="hot")
    yield _chat("answers as sound", right="refuse", modalities=["text", "audio"], audio={"voice": "alloy"})
    yield _chat("text alone", modalities=["text"], audio=None)


def _ignored() -> Iterator[Variant]:
    """Yield fields that ask a text model for nothing."""
    for name, value in {
        "reasoning_effort": "low",
        "reasoning": {"effort": "low"},
        "chat_template_kwargs": {"enable_thinking": False},
        "enable_thinking": False,
        "thinking": {"type": "disabled"},
        "thinking_budget": 0,
        "keep_alive": "5m",
        "options": {"num_ctx": 4096},
        "store": True,
        "metadata": {"chat": "7"},
        "service_tier": "flex",
        "cache_prompt": True,
        "verbosity": "low",
        "prediction": {"type": "content", "content": "ok"},
        "prompt_cache_retention": "24h",
        "chat_id": "c-1",
        "session_id": "s-1",
        "background_tasks": {"title_generation": True},
        "features": {"web_search": False},
        "provider": {"order": ["a"]},
        "id_slot": -1,
        "timings_per_token": False,
        "return_progress": False,
        "skip_special_tokens": True,
        "include_stop_str_in_output": False,
        "add_generation_prompt": True,
        "best_of": 1,
        "use_beam_search": False,
        "length_penalty": 1.0,
        "priority": 0,
        "mirostat": 0,
        "extra_body": {},
        "my_own_field": [1, 2],
    }.items():
        yield _chat(f"field {name}", **{name: value})


def _transport() -> Iterator[Variant]:
    """Yield paths, methods, headers and names of models."""
    whole: dict[str, Any] = {"model": "{model}", "messages": [_ASK], "max_tokens": 4}
    yield Variant("no content type", "answer", whole, headers={})
    yield Variant("content type text/plain", "answer", whole, headers={"Content-Type": "text/plain"})
    yield Variant(
        "content type of a form (curl -d)",
        "answer",
        whole,
        headers={"Content-Type": "application/x-www-form-urlencoded"},
    )
    yield Variant(
        "content type with a charset",
        "answer",
        whole,
        headers={"Content-Type": "application/json; charset=UTF-8"},
    )
    yield Variant(
        "a key where none is needed", "answer", whole, headers={**_JSON, "Authorization": "Bearer x"}
    )
    yield Variant("accepts events", "answer", whole, headers={**_JSON, "Accept": "text/event-stream"})
    yield Variant("model with a tag", "answer", {**whole, "model": "{model}:latest"})
    yield Variant("no model", "answer", {name: whole[name] for name in ("messages", "max_tokens")})
    yield Variant("another model", "either", {**whole, "model": "gpt-4o-mini"})
    yield Variant("no /v1", "answer", whole, path="/chat/completions")
    yield Variant("doubled slash in front", "answer", whole, path="//v1/chat/completions")
    yield Variant("doubled slash inside", "answer", whole, path="/v1//chat/completions")
    yield Variant("doubled /v1", "either", whole, path="/v1/v1/chat/completions")
    yield Variant("slash at the end", "either", whole, path="/v1/chat/completions/")
    text = {"model": "{model}", "prompt": "One, two,", "max_tokens": 4}
    yield Variant("completion", "answer", text, path="/v1/completions")
    yield Variant("completion without /v1", "answer", text, path="/completions")
    yield Variant(
        "completion of two prompts", "answer", {**text, "prompt": ["a", "b"]}, path="/v1/completions"
    )
    yield Variant(
        "completion, null fields",
        "answer",
        {**text, "suffix": None, "logprobs": None, "best_of": None},
        path="/v1/completions",
    )
    yield Variant(
        "completion, more fields",
        "answer",
        {**text, "cache_prompt": True, "options": {}, "raw": True},
        path="/v1/completions",
    )
    for path in ("/v1/models", "/models", "/v1//models", "/health"):
        yield Variant(f"GET {path}", "answer", method="GET", path=path)
        yield Variant(f"HEAD {path}", "answer", method="HEAD", path=path)
    yield Variant("one model", "either", method="GET", path="/v1/models/{model}")
    for path in (
        "/v1/embeddings",
        "/v1/rerank",
        "/v1/messages",
        "/v1/responses",
        "/api/chat",
        "/v1/audio/speech",
    ):
        yield Variant(f"POST {path}", "either", {**whole, "input": "ok"}, path=path)
    for path in ("/api/tags", "/api/version", "/nothing", "/v1"):
        yield Variant(f"GET {path}", "either", method="GET", path=path)
    yield Variant("not JSON", "refuse", '{"model": ')
    yield Variant("a list", "refuse", [1])
    yield Variant(
        "a duplicate field", "either", '{"model": "{model}", "messages": [], "messages": [], "max_tokens": 4}'
    )


VARIANTS = (
    *_messages(),
    *_history(),
    *_parts(),
    *_tools(),
    *_settings(),
    *_streams_and_formats(),
    *_ignored(),
    *_transport(),
)
