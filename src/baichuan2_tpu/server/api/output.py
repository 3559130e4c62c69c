"""What the writers of chats and completions share: the head of every object, and the count of tokens.

Not here: choices (``chat_answers``, ``completion_answers``).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pydantic import BaseModel

from baichuan2_tpu.generate.events import Result
from baichuan2_tpu.server.api.schema import PromptTokensDetails, Usage
from baichuan2_tpu.server.scheduling.answers import Piece, WholeAnswer

__all__ = ["Head", "Writer", "count_tokens"]


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
