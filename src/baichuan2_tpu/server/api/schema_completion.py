"""The fields of ``/v1/completions``, which continues a text or tokens as they are.

Not here: what they mean for generation (``completion``).
Source: OpenAI's API reference, "Create completion".
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from baichuan2_tpu.server.api.schema import MAX_ANSWERS, Limit, Many, SamplingInput, Usage, Whole
from baichuan2_tpu.server.errors import Output

__all__ = [
    "CompletionAnswer",
    "CompletionChoice",
    "CompletionLogprobs",
    "CompletionRequest",
]

Ids = Annotated[Many[int], Field(min_length=1)]
Prompt = (
    str
    | Ids
    | Annotated[Many[str], Field(min_length=1, max_length=MAX_ANSWERS)]
    | Annotated[Many[Ids], Field(min_length=1, max_length=MAX_ANSWERS)]
)


class CompletionRequest(SamplingInput):
    """Prompts to continue; a prompt is a text or a list of tokens."""

    prompt: Prompt
    max_tokens: Limit | None = Field(None, description="16 where it is left out; -1 is no limit.")
    echo: bool | None = None
    logprobs: Whole | None = Field(None, ge=0, le=20)
    best_of: Whole | None = Field(None, ge=1, description="Allowed only where it equals ``n``.")
    suffix: Literal[""] | None = None


class CompletionLogprobs(Output):
    r"""Log probabilities of tokens, side by side; the prompt's first token has none.

    A token that is not valid UTF-8 alone is written ``bytes:\xe4\xbd``. ``text_offset`` counts characters.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(Output):
    """One text and why it ended; in a stream, what is new in it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(Output):
    """All texts, or a piece of a stream; with ``include_usage`` its last one has usage and no choice."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None
