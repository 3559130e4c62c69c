"""What an answer is made of, as it comes and when it is complete.

Not here: making it (``answer``, ``loop``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from baichuan2_tpu.generate.sampling import TokenLogprob

__all__ = ["Event", "FinishReason", "PromptScored", "Result", "Stats", "TextPiece", "TokenChosen"]

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class TextPiece:
    """Text that can be shown now."""

    text: str


@dataclass(frozen=True, slots=True)
class TokenChosen:
    """A token of the answer; the log probabilities are those that were asked for."""

    token_id: int
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptScored:
    """The prompt's tokens with their log probabilities, where they were asked for; comes first, and once.

    The first token, which nothing comes before, has none.
    """

    tokens: tuple[TokenChosen, ...]


@dataclass(frozen=True, slots=True)
class Stats:
    """What an answer took, without the time the caller spent between two events.

    Units: counts are tokens. Times of tokens after the first are None when there was no more than one.
    """

    prompt_tokens: int
    reused_tokens: int
    generated_tokens: int
    first_token_s: float | None
    median_token_s: float | None
    tok_per_s: float | None


@dataclass(frozen=True, slots=True)
class Result:
    """The complete answer; always the last event.

    ``text`` is all text pieces together, without the stop string; ``token_ids`` has no stop id. ``end`` is
    the stop id that ended the answer, if one did.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats
    end: TokenChosen | None = None


Event = PromptScored | TextPiece | TokenChosen | Result
