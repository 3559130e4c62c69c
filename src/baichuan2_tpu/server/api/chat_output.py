"""Answers of a chat in OpenAI's form, complete or in chunks.

Not here: the fields (``schema_chat``), sending them (``event_stream``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.server.api.output import Head, chat_logprobs, count_tokens
from baichuan2_tpu.server.api.schema_chat import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FinishReason,
    FunctionDelta,
    Message,
    ToolCallDelta,
)
from baichuan2_tpu.server.api.tool_calls import CallPiece, CallReader, join_calls
from baichuan2_tpu.server.api.tools import callable_tools, is_call_forced
from baichuan2_tpu.server.scheduling.answers import Piece, WholeAnswer
from baichuan2_tpu.server.service import Service

__all__ = ["ChatWriter"]


class ChatWriter:
    """Writes the answers to one request."""

    def __init__(self, body: ChatRequest, service: Service) -> None:
        model = service.model
        self._head = asdict(Head.new("chatcmpl", model.name, model.fingerprint))
        self._tokenizer = model.tokenizer
        self._answers_per_prompt = body.n or 1
        self._has_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._started: set[int] = set()
        self._is_forced = is_call_forced(body)
        # Where no tool may be called, the marks of calls are ordinary text.
        readers = self._answers_per_prompt if callable_tools(body) else 0
        self._readers = {index: CallReader(is_forced=self._is_forced) for index in range(readers)}

    def write_all(self, answers: Sequence[WholeAnswer]) -> ChatAnswer:
        """Write all answers at once."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = count_tokens([answer.result for answer in answers], self._answers_per_prompt)
        return ChatAnswer(**self._head, choices=choices, usage=usage)

    def write_piece(self, piece: Piece) -> ChatChunk:
        """Write what is new in one answer; its first chunk names the role."""
        is_first = piece.index not in self._started
        self._started.add(piece.index)
        text, calls = self._read(piece.index, piece.text, is_last=piece.result is not None)
        choice = ChunkChoice(
            index=piece.index,
            delta=Delta(
                role="assistant" if is_first else None,
                content=text if text or (is_first and not calls) else None,
                tool_calls=[_call_delta(call) for call in calls] or None,
            ),
            logprobs=chat_logprobs(self._tokenizer, piece.tokens),
            finish_reason=None if piece.result is None else self._reason(piece.index, piece.result),
        )
        return ChatChunk(**self._head, choices=[choice], usage=None)

    def write_usage(self, results: Sequence[Result]) -> ChatChunk | None:
        """Write the token counts if they were requested."""
        if not self._has_usage:
            return None
        return ChatChunk(**self._head, choices=[], usage=count_tokens(results, self._answers_per_prompt))

    def _choice(self, index: int, answer: WholeAnswer) -> ChatChoice:
        text, calls = self._read(index, answer.result.text, is_last=True)
        return ChatChoice(
            index=index,
            message=Message(
                content=text if text or not (calls or self._is_forced) else None,
                tool_calls=join_calls(calls) or None,
            ),
            logprobs=chat_logprobs(self._tokenizer, answer.tokens),
            finish_reason=self._reason(index, answer.result),
        )

    def _read(self, index: int, text: str, *, is_last: bool) -> tuple[str, list[CallPiece]]:
        """Separate the calls from the text of an answer."""
        reader = self._readers.get(index)
        if reader is None:
            return text, []
        content, calls = reader.push(text)
        return content + (reader.flush() if is_last else ""), calls

    def _reason(self, index: int, result: Result) -> FinishReason:
        """Return why an answer ended; nobody reads one that was cancelled."""
        if result.finish_reason == "length":
            return "length"
        reader = self._readers.get(index)
        # A stop string may have cut a call short.
        return "tool_calls" if reader is not None and reader.ends_with_call else "stop"


def _call_delta(piece: CallPiece) -> ToolCallDelta:
    return ToolCallDelta(
        index=piece.index,
        id=piece.call_id,
        type="function" if piece.call_id is not None else None,
        function=FunctionDelta(name=piece.name, arguments=piece.arguments),
    )
