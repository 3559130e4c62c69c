"""The items of an answer while it is generated: its text and its calls, and the events that tell of them.

Not here: events of the response as a whole (``writer``), separating calls from text (``api.tool_calls``).
Source: OpenAI's API reference, "Streaming events".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from baichuan2_tpu.generate.events import Result, TokenChosen
from baichuan2_tpu.server.api.output import chat_logprobs
from baichuan2_tpu.server.api.responses.input import new_id
from baichuan2_tpu.server.api.responses.objects import (
    CallItem,
    MessageOutput,
    OutputItem,
    Status,
    TextPart,
)
from baichuan2_tpu.server.api.schema_chat import TokenLogprobs
from baichuan2_tpu.server.api.tool_calls import CallPiece, CallReader
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["AnswerItems", "Event"]

Event = Mapping[str, object]
"""An event without its number; the response's models in it become JSON as they are."""


@dataclass(slots=True)
class _OpenMessage:
    """A message that is being written."""

    id: str = field(default_factory=lambda: new_id("message"))
    pieces: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])

    def item(self, status: Status) -> MessageOutput:
        return MessageOutput(id=self.id, status=status, content=[self.part()] if self.pieces else [])

    def part(self) -> TextPart:
        return TextPart(text="".join(self.pieces), logprobs=tuple(self.logprobs))


@dataclass(slots=True)
class _OpenCall:
    """A call that is being written."""

    call_id: str
    name: str
    id: str = field(default_factory=lambda: new_id("function_call"))
    pieces: list[str] = field(default_factory=list[str])

    def item(self, status: Status) -> CallItem:
        return CallItem(
            id=self.id,
            status=status,
            call_id=self.call_id,
            name=self.name,
            arguments="".join(self.pieces),
        )


class AnswerItems:
    """Turns what is generated into items, one after the other; ``reader`` separates calls from text."""

    def __init__(self, tokenizer: Tokenizer, reader: CallReader | None) -> None:
        self.complete: list[OutputItem] = []
        """The items that nothing more is added to."""
        self._tokenizer = tokenizer
        self._reader = reader
        self._open: _OpenMessage | _OpenCall | None = None
        self._unshown: list[TokenChosen] = []
        """Tokens whose text is not shown yet; those of calls are never."""

    def push(self, text: str, tokens: Sequence[TokenChosen]) -> Iterator[Event]:
        """Add what was generated, and yield what is new."""
        self._unshown += tokens
        content, calls = (text, []) if self._reader is None else self._reader.push(text)
        if content:
            yield from self._add_text(content)
        for call in calls:
            yield from self._add_call(call)

    def finish(self, result: Result) -> Iterator[Event]:
        """Complete the last item."""
        rest = "" if self._reader is None else self._reader.flush()
        if rest or not (self._open or self.complete):
            yield from self._add_text(rest)
        if isinstance(self._open, _OpenCall):
            is_cut = self._reader is None or not self._reader.ends_with_call
        else:
            is_cut = result.finish_reason == "length"
        yield from self._close("incomplete" if is_cut else "completed")

    @property
    def _index(self) -> int:
        """The place of the item that is open."""
        return len(self.complete)

    def _add_text(self, text: str) -> Iterator[Event]:
        message = self._open
        if not isinstance(message, _OpenMessage):
            message = self._open = _OpenMessage()
            yield self._event("response.output_item.added", item=message.item("in_progress"))
            yield self._text_event("response.content_part.added", message, part=message.part())
        logprobs = chat_logprobs(self._tokenizer, self._unshown)
        entries = [] if logprobs is None else logprobs.content
        self._unshown.clear()
        message.pieces.append(text)
        message.logprobs += entries
        if text:
            yield self._text_event("response.output_text.delta", message, delta=text, logprobs=entries)

    def _add_call(self, piece: CallPiece) -> Iterator[Event]:
        if piece.call_id is not None:
            yield from self._close("completed")
            self._open = _OpenCall(piece.call_id, piece.name or "")
            yield self._event("response.output_item.added", item=self._open.item("in_progress"))
        call = self._open
        if isinstance(call, _OpenCall) and piece.arguments:
            call.pieces.append(piece.arguments)
            kind = "response.function_call_arguments.delta"
            yield self._event(kind, item_id=call.id, delta=piece.arguments)

    def _close(self, status: Status) -> Iterator[Event]:
        """Complete the item that is open."""
        if self._open is None:
            return
        item = self._open.item(status)
        if isinstance(self._open, _OpenMessage):
            part = self._open.part()
            kind = "response.output_text.done"
            yield self._text_event(kind, self._open, text=part.text, logprobs=part.logprobs)
            yield self._text_event("response.content_part.done", self._open, part=part)
        elif isinstance(item, CallItem):
            kind = "response.function_call_arguments.done"
            yield self._event(kind, item_id=item.id, name=item.name, arguments=item.arguments)
        yield self._event("response.output_item.done", item=item)
        self.complete.append(item)
        self._open = None

    def _event(self, kind: str, **fields: object) -> Event:
        return {"type": kind, "output_index": self._index, **fields}

    def _text_event(self, kind: str, message: _OpenMessage, **fields: object) -> Event:
        return self._event(kind, item_id=message.id, content_index=0, **fields)
