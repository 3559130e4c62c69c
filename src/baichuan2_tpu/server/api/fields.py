"""Fields of a request that are not declared: which are ignored by name, and which are refused.

A field is ignored where leaving it out changes nothing that a client could rely on. It is refused where an
answer would pretend that something was done. A strict server refuses every field that asks for something.
Not here: the fields that are honoured (``schema``, ``schema_chat``, ``schema_completion``,
``responses.schema``).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from threading import Lock
from typing import cast

from pydantic import BaseModel

from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.log_lines import log_event

__all__ = ["IGNORED", "REFUSED", "REFUSED_OF_RESPONSES", "IgnoredFields"]

_log = logging.getLogger(__name__)

_NO_THOUGHTS = "the model answers without thinking first"
_HISTORY = "clients copy it from an answer into the history"
_ONE_SERVER = "there is one model, kept loaded, and chats are not stored"

IGNORED: Mapping[str, str] = {
    "reasoning_effort": _NO_THOUGHTS,
    "reasoning": _NO_THOUGHTS,
    "enable_thinking": _NO_THOUGHTS,
    "thinking": _NO_THOUGHTS,
    "chat_template_kwargs": "templates have no variables",
    "keep_alive": _ONE_SERVER,
    "options": "Ollama's; give its settings as fields of their own",
    "store": _ONE_SERVER,
    "metadata": _ONE_SERVER,
    "service_tier": _ONE_SERVER,
    "cache_prompt": "prompts are always cached",
    "cache_control": "prompts are always cached",
    "prompt_cache_retention": "prompts are cached while there is memory",
    "prediction": "it only speeds up some models",
    "verbosity": "ask for it in the system message",
    "moderation": "nothing is moderated",
    "include_obfuscation": "streams are not padded",
    "function_call": "old name of tool_choice, without functions",
    "index": _HISTORY,
    "reasoning_content": _HISTORY,
    "reasoning_details": _HISTORY,
    "annotations": _HISTORY,
    "parsed": _HISTORY,
    "parsed_arguments": _HISTORY,
    "phase": _HISTORY,
    "prefix": "a last answer is always continued",
    "max_tool_calls": "it limits tools that a server runs, of which there are none",
    "prompt_cache_options": "prompts are always cached",
}
"""Fields that clients are known to send, and why nothing is lost; unknown ones are ignored as well."""

_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "include_obfuscation": (False,),
    "logprobs": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "moderation": (),
    "prediction": (),
    "prompt_cache_retention": (),
    "reasoning_effort": ("none",),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
"""Values, beside null, that ask for nothing: they are not even named."""

_FORMAT = "answers cannot be held to it; use response_format"

_CHATS = "completions are free text; use /v1/chat/completions"

REFUSED: Mapping[str, str] = {
    "allowed_token_ids": "answers cannot be held to it; use logit_bias",
    "audio": "this model answers with text only",
    "bad_words": "words cannot be forbidden; use stop or logit_bias",
    "documents": "nothing is looked up; put the texts into the messages",
    "echo": "a chat does not repeat its prompt; use /v1/completions",
    "functions": "functions are given as tools",
    "grammar": _FORMAT,
    "guided_choice": _FORMAT,
    "guided_grammar": _FORMAT,
    "guided_json": _FORMAT,
    "guided_regex": _FORMAT,
    "images": "this model reads text only",
    "json_schema": _FORMAT,
    "lora": "there are no adapters",
    "modalities": "this model answers with text only",
    "prompt_logprobs": "a chat's prompt is not scored; use /v1/completions with echo",
    "response_format": _CHATS,
    "structured_outputs": _FORMAT,
    "tools": _CHATS,
    "use_beam_search": "tokens are drawn one by one; leave it out",
    "web_search_options": "this server does not search the web",
}
"""Fields of a request's first level whose wish cannot be granted, and the reason; empty values are fine."""

REFUSED_OF_RESPONSES: Mapping[str, str] = {
    **REFUSED,
    "background": "nothing is computed in the background; leave it out, or stream",
    "context_management": "nothing is compacted; leave out what is oldest, or set truncation to auto",
    "conversation": "conversations are not stored; use previous_response_id",
    "echo": "a response does not repeat its input; use /v1/completions",
    "logprobs": "use include with message.output_text.logprobs",
    "max_completion_tokens": "use max_output_tokens",
    "max_tokens": "use max_output_tokens",
    "messages": "use input",
    "prompt": "no prompts are stored; use instructions and input",
    "response_format": "use text with format",
}
"""The same for ``/v1/responses``."""

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,100}")
_MAX_LOGGED = 256  # names over the life of a server, so that a client cannot fill its log


class IgnoredFields:
    """Checks the undeclared fields of requests; each name is logged once. From any thread."""

    def __init__(self, *, is_strict: bool = False) -> None:
        self._is_strict = is_strict
        self._logged: set[str] = set()
        self._lock = Lock()

    def check(self, body: BaseModel, refused: Mapping[str, str] = REFUSED) -> list[str]:
        """Return the names of the fields that are ignored, dotted and without the numbers in lists.

        Raises: ApiError for a field that is refused.
        """
        names: dict[str, None] = {}
        for place, value in _undeclared(body):
            name = place.rpartition(".")[2]
            is_neutral = value is None or value in _NEUTRAL.get(name, ())
            if is_neutral and (name in IGNORED or name in _NEUTRAL or not self._is_strict):
                continue
            if self._is_strict:
                raise _unknown(place)
            if place in refused:
                if value:
                    raise ApiError(f"{place}: {refused[place]}", param=place, code="unsupported_parameter")
                continue
            names[place if _NAME.fullmatch(place) else "?"] = None
        self._log(names)
        return list(names)

    def _log(self, names: Mapping[str, None]) -> None:
        with self._lock:
            new = [name for name in names if name not in self._logged]
            new = new[: _MAX_LOGGED - len(self._logged)]
            self._logged.update(new)
        if new:
            log_event(_log, "ignored", fields=",".join(new))


def _undeclared(body: BaseModel, place: str = "") -> Iterator[tuple[str, object]]:
    """Yield every undeclared field of a request and its parts, with its value."""
    for name, value in (body.model_extra or {}).items():
        yield f"{place}{name}", cast("object", value)
    for name in type(body).model_fields:
        value = cast("object", getattr(body, name))
        for part in cast("list[object]", value) if isinstance(value, list) else [value]:
            if not isinstance(part, BaseModel):
                break  # a list has parts of one kind
            yield from _undeclared(part, f"{place}{name}.")


def _unknown(place: str) -> ApiError:
    param = place.partition(".")[0]
    return ApiError(
        f"{place[:100]} is not a field that this server honours; leave it out, or serve without --strict",
        status=422,
        param=param,
        code="unknown_parameter",
    )
