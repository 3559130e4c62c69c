"""A text as tokens, cut into windows in which every token is scored once.

Not here: scoring (``perplexity``).
Source of the way to cut: "Perplexity of fixed-length models" in Hugging Face's documentation, and
``get_rolling_token_windows`` of lm-evaluation-harness, which cuts like this with a stride of one window.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.evaluate.passages import Passage
from baichuan2_tpu.files import hash_blocks
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = [
    "DEFAULT_WINDOW",
    "ScoredText",
    "check_same_cut",
    "check_same_tokens",
    "cut",
    "language_reference",
    "tokenise",
]

DEFAULT_WINDOW = 512


@dataclass(frozen=True, slots=True)
class ScoredText:
    """Tokens to score and how they are cut.

    Units: all in tokens; see ``cut``.
    Raises: RequestError for a window, a stride or a text that nothing can be scored of.
    """

    name: str
    tokens: tuple[int, ...]
    window: int
    stride: int

    def __post_init__(self) -> None:
        if self.window < 2:
            raise RequestError(f"a window is {self.window} tokens; 2 or more are allowed")
        if not 1 <= self.stride <= self.window:
            raise RequestError(
                f"the stride is {self.stride} tokens; 1 to {self.window}, the window, are allowed"
            )
        if len(self.tokens) < 2:
            raise RequestError(f"{self.name} has {len(self.tokens)} tokens; 2 or more are needed")

    @classmethod
    def of(
        cls, name: str, text: str, tokenizer: Tokenizer, *, limit: int | None, window: int, stride: int | None
    ) -> ScoredText:
        """Tokenise a text and say how it is cut; a stride of None is the window.

        Raises: RequestError; see ``tokenise``.
        """
        tokens = tokenise(name, text, tokenizer, limit)
        return cls(name, tokens, window, window if stride is None else stride)

    @property
    def sha256(self) -> str:
        """A digest of the tokens as little-endian int32."""
        return hash_blocks([np.array(self.tokens, "<i4").tobytes()])

    def passages(self) -> list[Passage]:
        """Return the windows."""
        return list(cut(self.tokens, self.window, self.stride))


def tokenise(name: str, text: str, tokenizer: Tokenizer, limit: int | None) -> tuple[int, ...]:
    """Return a text's tokens, as it is, without a token before it; ``limit`` cuts it.

    Raises: RequestError for a text shorter than ``limit``.
    """
    tokens = tokenizer.encode(text)
    if limit is not None and len(tokens) < limit:
        raise RequestError(f"{name} has {len(tokens)} tokens, {limit} were asked for; lower --tokens")
    return tuple(tokens[:limit])


def cut(tokens: Sequence[int], window: int, stride: int) -> Iterator[Passage]:
    """Yield windows in which every token is scored once, the first of a window without a past never.

    Each window begins ``stride`` tokens after the one before and scores what that one did not hold; the last
    one is moved back to be whole. A stride below the window leaves out the first token of the text alone.
    """
    scored, length = 1, len(tokens)
    for start in range(0, length, stride):
        stop = min(start + window, length)
        begin = max(0, min(start, stop - window))
        first = max(scored, begin + 1)
        if first < stop:
            yield Passage(tuple(tokens[begin:stop]), first - begin)
        scored = max(scored, stop)
        if stop == length:
            return


def check_same_tokens(name: str, tokens: Sequence[int], others: Sequence[int], model: str) -> None:
    """Check that a second model cuts the text called ``name`` into the same tokens as the first.

    Raises: RequestError naming that model and the first place where they differ.
    """
    if tokens == others:
        return
    pairs = zip(tokens, others, strict=False)
    place = next((i for i, (own, other) in enumerate(pairs) if own != other), None)
    seen = "ends elsewhere" if place is None else f"differs from token {place} on"
    raise RequestError(
        f"{model} has another tokenizer: {name} {seen}, so perplexities cannot be compared; "
        "name a model with the same tokenizer"
    )


def check_same_cut(text: ScoredText, other: ScoredText, model: str) -> None:
    """Check that a second model had the same tokens in the same windows as the first.

    Raises: RequestError naming that model and what differs.
    """
    check_same_tokens(text.name, text.tokens, other.tokens, model)
    if (text.window, text.stride) != (other.window, other.stride):
        raise RequestError(
            f"{model} has {text.name} in windows of {other.window} tokens, stride {other.stride}, and the "
            f"first model in windows of {text.window}, stride {text.stride}, so perplexities cannot be "
            "compared; give both the same --window and --stride"
        )


def language_reference() -> tuple[str, str]:
    """Return the name and the text of the language reference inside Python, which ``help()`` shows.

    It is English prose that every CPython carries; versions differ a little.
    """
    from pydoc_data.topics import topics  # noqa: PLC0415 - half a megabyte that is seldom wanted

    name = f"the language reference of Python {platform.python_version()}"
    return name, "\n\n".join(topics[topic] for topic in sorted(topics))
