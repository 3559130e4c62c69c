"""A model as evaluation sees it: what scores, what turns text into tokens, and its name.

Not here: opening one (``cli.evaluate_models``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from baichuan2_tpu.config import ModelConfig
from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.evaluate.passages import Progress, Scorer
from baichuan2_tpu.evaluate.perplexity import Perplexity
from baichuan2_tpu.evaluate.scored_text import DEFAULT_WINDOW, ScoredText, check_same_tokens, tokenise
from baichuan2_tpu.text.template import ChatTemplate
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["Subject", "TextPlan", "measure_perplexity", "no_answers"]


@dataclass(frozen=True, slots=True)
class Subject:
    """An open model."""

    name: str
    engine_name: str
    weights: str
    """What its weights are: "4 bits", "float32"."""
    config: ModelConfig
    scorer: Scorer
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None for a model that knows no chat."""
    engine: Engine | None
    """What answers; None for float weights, which only score."""

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's kind and size."""
        return f"{type(self.tokenizer).__name__} of {self.tokenizer.vocabulary_size} ids"


@dataclass(frozen=True, slots=True)
class TextPlan:
    """A text, and how it is to be scored; None leaves it to the text or the model. Units: tokens."""

    name: str
    text: str
    tokens: int | None = None
    window: int | None = None
    stride: int | None = None

    def check_tokenizers(self, first: Tokenizer, other: Tokenizer, model: str) -> None:
        """Check that ``other``, the tokenizer of ``model``, gives the same tokens as the first model's.

        Raises: RequestError naming the first place where they differ, or for a text that is too short.
        """
        tokens, others = (
            tokenise(self.name, self.text, tokenizer, self.tokens) for tokenizer in (first, other)
        )
        check_same_tokens(self.name, tokens, others, model)

    def cut_like(self, text: ScoredText) -> TextPlan:
        """Return the plan with the windows that another model had: a longer past lowers a perplexity."""
        return replace(self, window=text.window, stride=text.stride)

    def tokenise(self, subject: Subject) -> ScoredText:
        """Return the text in a model's tokens.

        Raises: RequestError for a text or a window that cannot be scored.
        """
        context = subject.scorer.max_context
        window = min(DEFAULT_WINDOW, context) if self.window is None else self.window
        if window > context:
            raise RequestError(
                f"a window of {window} tokens does not fit {subject.name}, whose context is {context}; "
                f"use --window {context} or less"
            )
        return ScoredText.of(
            self.name, self.text, subject.tokenizer, limit=self.tokens, window=window, stride=self.stride
        )


def no_answers(model: str) -> RequestError:
    """Return the error of float weights that are asked for text."""
    return RequestError(
        f"{model} is scored as float weights, which write no answers; "
        "compare tasks that ask for text with --against-engine cpu"
    )


def measure_perplexity(subject: Subject, text: ScoredText, on_progress: Progress | None = None) -> Perplexity:
    """Score a text in a model's tokens.

    Raises: what its scorer raises.
    """
    return Perplexity.of(subject.scorer.score(text.passages(), on_progress))
