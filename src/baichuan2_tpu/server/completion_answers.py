"""Completions as OpenAI writes them, whole or in chunks.

Not here: the fields (``schema_completion``), sending them (``streams``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal

from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.server.api.output import Head, count_tokens
from baichuan2_tpu.server.api.schema_completion import (
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from baichuan2_tpu.server.logprobs import CompletionLogprobsWriter
from baichuan2_tpu.server.scheduling.answers import Piece, WholeAnswer
from baichuan2_tpu.server.scheduling.scheduler import Request
from baichuan2_tpu.server.service import Service

__all__ = ["CompletionWriter"]


class CompletionWriter:
    """Writes the answers to one request; ``requests`` are what it asked of the scheduler."""

    def __init__(self, body: CompletionRequest, service: Service, requests: Sequence[Request]) -> None:
        model = service.model
        self._head = asdict(Head.new("cmpl", model.name, model.fingerprint))
        self._answers_a_prompt = body.n or 1
        self._has_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._has_logprobs = body.logprobs is not None
        self._logprobs = [CompletionLogprobsWriter(model.tokenizer) for _ in requests]
        # What is yet to be said in front of each answer.
        self._prompts = [
            model.tokenizer.decode(request.prompt_ids) if body.echo else "" for request in requests
        ]

    def whole(self, answers: Sequence[WholeAnswer]) -> CompletionAnswer:
        """Write all answers at once."""
        pieces = [
            Piece(index, answer.result.text, answer.tokens, answer.result)
            for index, answer in enumerate(answers)
        ]
        usage = count_tokens([answer.result for answer in answers], self._answers_a_prompt)
        return CompletionAnswer(**self._head, choices=[self._choice(piece) for piece in pieces], usage=usage)

    def chunk(self, piece: Piece) -> CompletionAnswer:
        """Write what is new of one answer."""
        return CompletionAnswer(**self._head, choices=[self._choice(piece)], usage=None)

    def last(self, results: Sequence[Result]) -> CompletionAnswer | None:
        """Write the count of tokens, if it was asked for."""
        if not self._has_usage:
            return None
        usage = count_tokens(results, self._answers_a_prompt)
        return CompletionAnswer(**self._head, choices=[], usage=usage)

    def _choice(self, piece: Piece) -> CompletionChoice:
        prompt, self._prompts[piece.index] = self._prompts[piece.index], ""
        return CompletionChoice(
            index=piece.index,
            text=prompt + piece.text,
            logprobs=self._write_logprobs(piece),
            finish_reason=None if piece.result is None else _reason(piece.result),
        )

    def _write_logprobs(self, piece: Piece) -> CompletionLogprobs | None:
        if not self._has_logprobs:
            return None
        # As OpenAI does: lm-evaluation-harness takes the last entry for the answer's token in any case.
        end = piece.result.end if piece.result is not None else None
        return self._logprobs[piece.index].write(piece.tokens if end is None else (*piece.tokens, end))


def _reason(result: Result) -> Literal["stop", "length"]:
    """Return why an answer ended; one that was cancelled has no reader."""
    return "length" if result.finish_reason == "length" else "stop"
