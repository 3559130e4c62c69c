"""Answers of a chat as OpenAI writes them, whole or in chunks.

Not here: the fields (``schema_chat``), sending them (``streams``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.server.answers import Piece, WholeAnswer
from baichuan2_tpu.server.logprobs import chat_logprobs
from baichuan2_tpu.server.schema_chat import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatRequest,
    ChunkChoice,
    Delta,
    FinishReason,
    Message,
)
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.server.writers import Head, count_tokens

__all__ = ["ChatWriter"]


class ChatWriter:
    """Writes the answers to one request."""

    def __init__(self, body: ChatRequest, service: Service) -> None:
        model = service.model
        self._head = asdict(Head.new("chatcmpl", model.name, model.fingerprint))
        self._tokenizer = model.tokenizer
        self._answers = body.n or 1
        self._has_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._begun: set[int] = set()

    def whole(self, answers: Sequence[WholeAnswer]) -> ChatAnswer:
        """Write all answers at once."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = count_tokens([answer.result for answer in answers], self._answers)
        return ChatAnswer(**self._head, choices=choices, usage=usage)

    def chunk(self, piece: Piece) -> ChatChunk:
        """Write what is new of one answer; its first chunk names the role."""
        is_first = piece.index not in self._begun
        self._begun.add(piece.index)
        choice = ChunkChoice(
            index=piece.index,
            delta=Delta(
                role="assistant" if is_first else None,
                content=piece.text if piece.text or is_first else None,
            ),
            logprobs=chat_logprobs(self._tokenizer, piece.tokens),
            finish_reason=None if piece.result is None else _reason(piece.result),
        )
        return ChatChunk(**self._head, choices=[choice], usage=None)

    def last(self, results: Sequence[Result]) -> ChatChunk | None:
        """Write the count of tokens, if it was asked for."""
        if not self._has_usage:
            return None
        return ChatChunk(**self._head, choices=[], usage=count_tokens(results, self._answers))

    def _choice(self, index: int, answer: WholeAnswer) -> ChatChoice:
        return ChatChoice(
            index=index,
            message=Message(content=answer.result.text),
            logprobs=chat_logprobs(self._tokenizer, answer.tokens),
            finish_reason=_reason(answer.result),
        )


def _reason(result: Result) -> FinishReason:
    """Return why an answer ended; one that was cancelled has no reader."""
    return "length" if result.finish_reason == "length" else "stop"
