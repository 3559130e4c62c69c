"""What the answers of chats and completions share: the head of every object, counts, log probabilities.

Not here: choices (``chat_output``, ``completion``), the log probabilities themselves (``generate.sampling``).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel

from baichuan2_tpu.generate.events import Result, TokenChosen
from baichuan2_tpu.server.api.schema import PromptTokensDetails, Usage
from baichuan2_tpu.server.api.schema_chat import ChatLogprobs, TokenLogprob, TokenLogprobs
from baichuan2_tpu.server.api.schema_completion import CompletionLogprobs
from baichuan2_tpu.server.scheduling.answers import Piece, WholeAnswer
from baichuan2_tpu.text.tokenizer import StreamDecoder, Tokenizer

__all__ = ["CompletionLogprobsWriter", "Head", "Writer", "chat_logprobs", "count_tokens"]

_LEAST = -9999.0  # OpenAI's value for "as good as never"; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Head:
    """What every object of one response says about it."""

    id: str
    model: str
    system_fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def new(cls, prefix: str, model: str, fingerprint: str) -> Head:
        """Return the head of a new response, with an id of its own."""
        return cls(f"{prefix}-{uuid.uuid4().hex}", model, fingerprint)


class Writer(Protocol):
    """Writes answers as OpenAI does."""

    def whole(self, answers: Sequence[WholeAnswer]) -> BaseModel:
        """Write all answers at once."""
        ...

    def chunk(self, piece: Piece) -> BaseModel:
        """Write what is new of one answer."""
        ...

    def last(self, results: Sequence[Result]) -> BaseModel | None:
        """Write what comes after all pieces: the count of tokens, where it was asked for."""
        ...


def count_tokens(results: Iterable[Result], answers_a_prompt: int) -> Usage:
    """Count the tokens of all answers; a prompt's once. ``results`` are in the order of their requests."""
    stats = [result.stats for result in results]
    prompts = stats[::answers_a_prompt]
    prompt_tokens = sum(one.prompt_tokens for one in prompts)
    completion_tokens = sum(one.generated_tokens for one in stats)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(one.reused_tokens for one in prompts)),
    )


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenChosen]) -> ChatLogprobs | None:
    """Write the tokens of a chat's answer; None when no log probabilities were asked for."""
    asked = [token for token in tokens if token.logprob is not None]
    if not asked:
        return None
    return ChatLogprobs(content=[_chat_token(tokenizer, token) for token in asked])


def _chat_token(tokenizer: Tokenizer, token: TokenChosen) -> TokenLogprobs:
    top = [_entry(tokenizer, one.token_id, one.logprob) for one in token.top_logprobs]
    own = _entry(tokenizer, token.token_id, token.logprob or 0.0)
    return TokenLogprobs(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> TokenLogprob:
    content = tokenizer.token_bytes(token_id)
    return TokenLogprob(
        token=content.decode("utf-8", "replace"), logprob=max(logprob, _LEAST), bytes=list(content)
    )


class CompletionLogprobsWriter:
    """Writes the tokens of one completion, and counts its characters on the way."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._offset = 0

    def write(self, tokens: Sequence[TokenChosen]) -> CompletionLogprobs:
        """Write the next tokens."""
        return CompletionLogprobs(
            tokens=[self._name(token.token_id) for token in tokens],
            token_logprobs=[
                None if token.logprob is None else max(token.logprob, _LEAST) for token in tokens
            ],
            top_logprobs=[self._top(token) for token in tokens],
            text_offset=[self._place(token.token_id) for token in tokens],
        )

    def _top(self, token: TokenChosen) -> dict[str, float] | None:
        """Return the likeliest tokens, and the chosen one, by their names."""
        if token.logprob is None:
            return None
        top = {self._name(one.token_id): max(one.logprob, _LEAST) for one in token.top_logprobs}
        return top | {self._name(token.token_id): max(token.logprob, _LEAST)}

    def _place(self, token_id: int) -> int:
        place = self._offset
        self._offset += len(self._decoder.push(token_id))
        return place

    def _name(self, token_id: int) -> str:
        content = self._tokenizer.token_bytes(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
