"""A response in OpenAI's form, complete or as the events of a stream; at its end it is stored.

Not here: its items (``items``), keeping it (``store``), sending it (``api.event_stream``).
Source: OpenAI's API reference, "Streaming events"; in a stream its servers report an error both as the
reference says and below ``error``, where its clients look for it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import chain, count

from pydantic import BaseModel, JsonValue
from pydantic_core import to_json

from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.server.api.responses.input import new_id
from baichuan2_tpu.server.api.responses.items import AnswerItems, Event
from baichuan2_tpu.server.api.responses.objects import (
    IncompleteDetails,
    OutputItem,
    ResponseError,
    ResponseObject,
    ResponseUsage,
)
from baichuan2_tpu.server.api.responses.schema import ResponseRequest
from baichuan2_tpu.server.api.responses.store import ResponseStore, StoredItem, StoredResponse
from baichuan2_tpu.server.api.schema_chat import ChatRequest
from baichuan2_tpu.server.api.tool_calls import CallReader
from baichuan2_tpu.server.api.tools import callable_tools, is_call_forced
from baichuan2_tpu.server.errors import ErrorBody
from baichuan2_tpu.server.scheduling.answers import Answers, WholeAnswer
from baichuan2_tpu.server.scheduling.ticket import Request
from baichuan2_tpu.server.service import Service

__all__ = ["Keeping", "ResponseWriter"]

_CODES = {"server_error": "server_error", "rate_limit_error": "rate_limit_exceeded"}
"""Codes of failed responses by the types of errors."""


@dataclass(frozen=True, slots=True)
class Keeping:
    """Where a response is kept, for whom, and what it answers."""

    store: ResponseStore
    holder: str
    items: tuple[StoredItem, ...]


class ResponseWriter:
    """Writes the answer to one request; ``chat`` is the request as a chat, ``request`` the scheduler's."""

    def __init__(
        self, body: ResponseRequest, chat: ChatRequest, request: Request, service: Service, keeping: Keeping
    ) -> None:
        self._id = new_id("response")
        self._created_s = int(time.time())
        self._body = body
        self._request = request
        self._model_name = service.model.name
        self._keeping = keeping
        # Where no tool may be called, the marks of calls are ordinary text.
        reader = CallReader(is_forced=is_call_forced(chat)) if callable_tools(chat) else None
        self._items = AnswerItems(service.model.tokenizer, reader)
        self._numbers = count()

    def write_all(self, answers: Sequence[WholeAnswer]) -> ResponseObject:
        """Write the complete response."""
        (answer,) = answers
        events = chain(self._items.push(answer.result.text, answer.tokens), self._items.finish(answer.result))
        deque(events, maxlen=0)  # nobody listens to them
        return self._keep(answer.result)

    async def events(self, answers: Answers) -> AsyncGenerator[str, None]:
        """Yield the text of every event of a stream."""
        response = self._response("in_progress", is_stored=self._is_stored)
        for kind in ("response.created", "response.in_progress"):
            yield self._write({"type": kind, "response": response})
        async with aclosing(answers.pieces()) as pieces:
            async for piece in pieces:
                events = list(self._items.push(piece.text, piece.tokens))
                if piece.result is not None:
                    events += self._items.finish(piece.result)
                    response = self._keep(piece.result)
                    events.append({"type": f"response.{response.status}", "response": response})
                for event in events:
                    yield self._write(event)

    def write_error(self, body: ErrorBody) -> str:
        """Write why a stream ends before its answer."""
        error = body.error
        code = _CODES.get(error.type, "invalid_prompt")
        response = self._response(
            "failed", error=ResponseError(code=code, message=error.message), is_stored=False
        )
        fault = self._write({"type": "error", **error.model_dump(exclude={"type"}), "error": error})
        return fault + self._write({"type": "response.failed", "response": response})

    @property
    def _is_stored(self) -> bool:
        return self._body.store is not False and self._keeping.store.limits.responses > 0

    def _keep(self, result: Result) -> ResponseObject:
        """Return the complete response, and store it if that is wished and possible."""
        is_cut = result.finish_reason == "length"
        stats = result.stats
        usage = ResponseUsage.count(stats.prompt_tokens, stats.reused_tokens, stats.generated_tokens)
        response = self._response(
            "incomplete" if is_cut else "completed",
            usage=usage,
            incomplete_details=IncompleteDetails() if is_cut else None,
            completed_at=None if is_cut else int(time.time()),
            is_stored=self._is_stored,
        )
        if not response.store:
            return response
        answer = tuple(map(_to_stored, response.output))
        keeping = self._keeping
        stored = StoredResponse(
            self._id, response.model_dump_json().encode(), keeping.items + answer, len(keeping.items)
        )
        if keeping.store.can_keep(stored):
            keeping.store.put(keeping.holder, stored)
            return response
        return response.model_copy(update={"store": False})

    def _response(self, status: str, *, is_stored: bool, **more: object) -> ResponseObject:
        body, sampling = self._body, self._request.settings.sampling
        fields: dict[str, object] = {
            "id": self._id,
            "created_at": self._created_s,
            "status": status,
            "model": self._model_name,
            "output": list(self._items.complete),
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata or {},
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "safety_identifier": body.safety_identifier,
            "store": is_stored,
            "temperature": sampling.temperature,
            "text": {"format": _echo(body.text.format if body.text else None) or {"type": "text"}},
            "tool_choice": _echo(body.tool_choice) or "auto",
            "tools": [_echo(tool) for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": sampling.top_p,
            "truncation": body.truncation or "disabled",
            "user": body.user,
        }
        return ResponseObject.model_validate({**fields, **more})

    def _write(self, event: Event) -> str:
        """Return an event as it is sent, with its number."""
        content = to_json({**event, "sequence_number": next(self._numbers)}).decode()
        return f"event: {event['type']}\ndata: {content}\n\n"


def _to_stored(item: OutputItem) -> StoredItem:
    """Return an item of an answer as later answers read it, without log probabilities."""
    content = item.model_dump_json(exclude={"content": {"__all__": {"logprobs"}}})
    return StoredItem(item.id, content.encode())


def _echo(value: BaseModel | str | None) -> JsonValue:
    """Return a field of the request as it came, without what is not honoured."""
    if not isinstance(value, BaseModel):
        return value
    return value.model_dump(mode="json", by_alias=True, exclude=set(value.model_extra or ()))
