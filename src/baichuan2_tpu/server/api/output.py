"""What the answers of chats and completions share: the common fields, token counts, log probabilities.

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

_MIN_LOGPROB = -9999.0  # OpenAI's value for "practically never"; JSON has no infinity


@dataclass(frozen=True, slots=True)
class Head:
    """The fields that all objects of one response share."""

    id: str
    model: str
    system_fingerprint: str
    created: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def new(cls, prefix: str, model: str, fingerprint: str) -> Head:
        """Return the head of a new response, with a new id."""
        return cls(f"{prefix}-{uuid.uuid4().hex}", model, fingerprint)


class Writer(Protocol):
    """Writes answers in OpenAI's form."""

    def write_all(self, answers: Sequence[WholeAnswer]) -> BaseModel:
        """Write all answers at once."""
        ...

    def write_piece(self, piece: Piece) -> BaseModel:
        """Write what is new in one answer."""
        ...

    def write_usage(self, results: Sequence[Result]) -> BaseModel | None:
        """Write what follows the last piece: the token counts if they were requested."""
        ...


def count_tokens(results: Iterable[Result], answers_per_prompt: int) -> Usage:
    """Count the tokens of all answers, each prompt once; ``results`` are in the order of their requests."""
    answers = [result.stats for result in results]
    prompts = answers[::answers_per_prompt]
    prompt_tokens = sum(stats.prompt_tokens for stats in prompts)
    cached_tokens = sum(stats.reused_tokens for stats in prompts)
    completion_tokens = sum(stats.generated_tokens for stats in answers)
    return Usage(
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens),
    )


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[TokenChosen]) -> ChatLogprobs | None:
    """Write the tokens of a chat's answer; None without log probabilities."""
    scored = [token for token in tokens if token.logprob is not None]
    if not scored:
        return None
    return ChatLogprobs(content=[_chat_token(tokenizer, token) for token in scored])


def _chat_token(tokenizer: Tokenizer, token: TokenChosen) -> TokenLogprobs:
    top = [_entry(tokenizer, likely.token_id, likely.logprob) for likely in token.top_logprobs]
    own = _entry(tokenizer, token.token_id, token.logprob or 0.0)
    return TokenLogprobs(token=own.token, logprob=own.logprob, bytes=own.bytes, top_logprobs=top)


def _entry(tokenizer: Tokenizer, token_id: int, logprob: float) -> TokenLogprob:
    content = tokenizer.token_bytes(token_id)
    return TokenLogprob(
        token=content.decode("utf-8", "replace"), logprob=max(logprob, _MIN_LOGPROB), bytes=list(content)
    )


class CompletionLogprobsWriter:
    """Writes the tokens of one completion, and counts its characters."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._offset = 0

    def write(self, tokens: Sequence[TokenChosen]) -> CompletionLogprobs:
        """Write the next tokens."""
        return CompletionLogprobs(
            tokens=[self._name(token.token_id) for token in tokens],
            token_logprobs=[
                None if token.logprob is None else max(token.logprob, _MIN_LOGPROB) for token in tokens
            ],
            top_logprobs=[self._top(token) for token in tokens],
            text_offset=[self._count(token.token_id) for token in tokens],
        )

    def _top(self, token: TokenChosen) -> dict[str, float] | None:
        """Return the log probabilities of the most likely tokens and the chosen one, by name."""
        if token.logprob is None:
            return None
        top = {
            self._name(likely.token_id): max(likely.logprob, _MIN_LOGPROB) for likely in token.top_logprobs
        }
        return top | {self._name(token.token_id): max(token.logprob, _MIN_LOGPROB)}

    def _count(self, token_id: int) -> int:
        """Return the offset of a token, and add its characters to the offset of the next."""
        offset = self._offset
        self._offset += len(self._decoder.push(token_id))
        return offset

    def _name(self, token_id: int) -> str:
        content = self._tokenizer.token_bytes(token_id)
        try:
            return content.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
