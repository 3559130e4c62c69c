"""Completions in OpenAI's form: from a request to the scheduler's, and the answers, complete or in chunks.

Not here: the fields (``schema_completion``), sending them (``event_stream``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Literal, cast

from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.server.api.answer_settings import answer_settings, make_requests
from baichuan2_tpu.server.api.output import CompletionLogprobsWriter, Head, count_tokens
from baichuan2_tpu.server.api.schema import MAX_ANSWERS
from baichuan2_tpu.server.api.schema_completion import (
    CompletionAnswer,
    CompletionChoice,
    CompletionLogprobs,
    CompletionRequest,
)
from baichuan2_tpu.server.errors import ApiError
from baichuan2_tpu.server.scheduling.answers import Piece, WholeAnswer
from baichuan2_tpu.server.scheduling.ticket import Request
from baichuan2_tpu.server.service import Service

__all__ = ["CompletionWriter", "completion_requests"]

_DEFAULT_MAX_TOKENS = 16  # OpenAI's


def completion_requests(body: CompletionRequest, service: Service, client: str) -> list[Request]:
    """Return a request for each answer to each prompt, the answers to the first prompt first.

    Raises: ApiError, RequestError for what is not supported.
    """
    if body.best_of not in (None, body.n or 1):
        raise ApiError(
            f"best_of is {body.best_of}; only the value of n, {body.n or 1}, is allowed", param="best_of"
        )
    settings = answer_settings(
        body,
        service,
        max_tokens=_max_tokens(body),
        logprobs=body.logprobs,
        prompt_logprobs=_prompt_logprobs(body),
    )
    prompts = _prompts(body)
    if len(prompts) * (body.n or 1) > MAX_ANSWERS:
        raise ApiError(
            f"the request asks for {len(prompts)} prompts with {body.n} answers each; "
            f"at most {MAX_ANSWERS} answers are allowed in all",
            param="n",
        )
    return [
        request
        for prompt in prompts
        for request in make_requests(_ids(prompt, service), settings, body, service, client)
    ]


def _max_tokens(body: CompletionRequest) -> int | None:
    """Return the limit; null stands for the model's own, as for a chat."""
    if body.n_predict is not None and "max_tokens" not in body.model_fields_set:
        return body.n_predict
    return body.max_tokens if "max_tokens" in body.model_fields_set else _DEFAULT_MAX_TOKENS


def _prompt_logprobs(body: CompletionRequest) -> int | None:
    """Return how many likely tokens to report per prompt position; None when it is not scored."""
    if not body.echo:
        return None
    # Without a token to generate the prompt is scored, whether or not its scores are requested.
    return 0 if body.logprobs is None and body.max_tokens == 0 else body.logprobs


def _prompts(body: CompletionRequest) -> list[str] | list[list[int]]:
    prompt = body.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [cast("list[int]", prompt)]
    return cast("list[str] | list[list[int]]", prompt)


def _ids(prompt: str | list[int], service: Service) -> list[int]:
    return service.model.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt


class CompletionWriter:
    """Writes the answers to one request; ``requests`` are the scheduler's requests for it."""

    def __init__(self, body: CompletionRequest, service: Service, requests: Sequence[Request]) -> None:
        model = service.model
        self._head = asdict(Head.new("cmpl", model.name, model.fingerprint))
        self._answers_per_prompt = body.n or 1
        self._has_usage = bool(body.stream_options and body.stream_options.include_usage)
        self._has_logprobs = body.logprobs is not None
        self._logprobs = [CompletionLogprobsWriter(model.tokenizer) for _ in requests]
        # The echoed prompt, which the first piece of each answer starts with.
        self._prompts = [
            model.tokenizer.decode(request.prompt_ids) if body.echo else "" for request in requests
        ]

    def write_all(self, answers: Sequence[WholeAnswer]) -> CompletionAnswer:
        """Write all answers at once."""
        pieces = [
            Piece(index, answer.result.text, answer.tokens, answer.result)
            for index, answer in enumerate(answers)
        ]
        usage = count_tokens([answer.result for answer in answers], self._answers_per_prompt)
        return CompletionAnswer(**self._head, choices=[self._choice(piece) for piece in pieces], usage=usage)

    def write_piece(self, piece: Piece) -> CompletionAnswer:
        """Write what is new in one answer."""
        return CompletionAnswer(**self._head, choices=[self._choice(piece)], usage=None)

    def write_usage(self, results: Sequence[Result]) -> CompletionAnswer | None:
        """Write the token counts if they were requested."""
        if not self._has_usage:
            return None
        usage = count_tokens(results, self._answers_per_prompt)
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
        # As OpenAI does: lm-evaluation-harness always takes the last entry for the answer's token.
        end = piece.result.end if piece.result is not None else None
        return self._logprobs[piece.index].write(piece.tokens if end is None else (*piece.tokens, end))


def _reason(result: Result) -> Literal["stop", "length"]:
    """Return why an answer ended; nobody reads one that was cancelled."""
    return "length" if result.finish_reason == "length" else "stop"
