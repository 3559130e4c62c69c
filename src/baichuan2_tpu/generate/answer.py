"""One answer while it grows: from rows of logits to tokens, text and the reason of its end.

Not here: where the logits come from (``loop`` for one conversation, the server's scheduler for many).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.generate.events import FinishReason, PromptScored, Result, Stats, TokenChosen
from baichuan2_tpu.generate.sampling import choose, logprobs
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.generate.stops import StopStrings
from baichuan2_tpu.text.tokenizer import StreamDecoder, Tokenizer

__all__ = ["SCORED_ROWS", "Answer"]

SCORED_ROWS = 64
"""Rows of logits to take at once for the log probabilities of a prompt: 32 MB with Baichuan2's vocabulary."""


class Answer:
    """The state of one answer: ``choose`` a token, ``read`` it, and so on until it ``is_over``.

    ``eos_ids`` and ``max_context`` are the engine's. Time counts from here to the first token, and then from
    each ``start_token``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
        *,
        eos_ids: Sequence[int],
        max_context: int,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.reused_tokens = 0
        """Tokens of the prompt that were not computed again; set by who feeds it."""
        self._settings = settings
        self._vocabulary_size = tokenizer.vocabulary_size
        eos = settings.stop_ids | tokenizer.stop_ids | frozenset(eos_ids)
        self._stop_ids = frozenset(
            token_id for token_id in eos | settings.own_stop_ids if token_id < self._vocabulary_size
        )
        self._never_ids = self._stop_ids - settings.own_stop_ids if settings.ignore_eos else frozenset[int]()
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(settings.stop)
        self._constraint = settings.grammar.start() if settings.grammar is not None else None
        self._generator = np.random.default_rng(settings.sampling.seed)
        # The token that fills the context's last place is fed, and the one after it still chosen.
        self._limit = min(settings.max_tokens, max_context - len(prompt_ids) + 1)
        self._history = np.zeros(len(prompt_ids) + self._limit, np.intp)
        self._history[: len(prompt_ids)] = prompt_ids
        self._is_scored = settings.prompt_logprobs is None
        self._scored = [TokenChosen(prompt_ids[0])]
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._finish_reason: FinishReason | None = None
        self._end: TokenChosen | None = None
        self._tokens_s: list[float] = []
        self._clock_s = clock_s
        self._started_s = clock_s()

    @property
    def is_over(self) -> bool:
        """Whether no more tokens may be chosen."""
        return self._finish_reason is not None

    @property
    def is_scoring(self) -> bool:
        """Whether the rows behind the prompt's tokens are needed, for ``score``."""
        return not self._is_scored

    @property
    def reusable_ids(self) -> Sequence[int]:
        """The beginning of the prompt that a sequence may hold already, but for its last id."""
        return self.prompt_ids[: len(self._scored)] if self.is_scoring else self.prompt_ids

    def score(self, logits: NDArray[np.float32], start: int) -> PromptScored | None:
        """Take rows behind the prompt's tokens from number ``start`` on; return all scores with the last.

        Shapes: logits (T, V). A row behind the prompt's last token, or one taken before, is passed over.
        Raises: BackendError when they are not numbers.
        """
        count = self._settings.prompt_logprobs
        if count is None or self._is_scored:
            return None
        done = len(self._scored)
        for row, token_id in zip(logits[done - start - 1 :], self.prompt_ids[done:], strict=False):
            self._scored.append(_with_logprobs(self._without_unknown(row), token_id, count))
        self._is_scored = len(self._scored) == len(self.prompt_ids)
        return PromptScored(tuple(self._scored)) if self._is_scored else None

    def start_token(self) -> None:
        """Begin to count the time of the next token."""
        self._started_s = self._clock_s()

    def choose(self, logits: NDArray[np.float32]) -> TokenChosen | None:
        """Choose the next token; None when it is one that ends the answer, or none is wanted.

        Shapes: logits (V,). Raises: BackendError when they are not numbers; RequestError when the grammar
        leaves no token.
        """
        if self._limit == 0:
            self._finish_reason = "length"
            return None
        length = len(self.prompt_ids) + len(self._ids)
        history, sampling = self._history[:length], self._settings.sampling
        logits = self._without_unknown(logits)
        allowed = logits if self._constraint is None else self._constraint.mask(logits, self._stop_ids)
        allowed = self._without_early_end(allowed)
        token_id = choose(allowed, sampling, history, self._generator, answered=len(self._ids))
        self._tokens_s.append(self._clock_s() - self._started_s)
        if token_id in self._stop_ids:
            self._finish_reason = "stop"
            self._end = self._with_logprobs(logits, token_id)
            return None
        if self._constraint is not None:
            self._constraint.accept(token_id)
        self._history[length] = token_id
        self._ids.append(token_id)
        return self._with_logprobs(logits, token_id)

    def read(self, token_id: int) -> str:
        """Return the text this token lets be shown."""
        text = self._stops.push(self._decoder.push(token_id))
        self._texts.append(text)
        is_complete = self._constraint is not None and self._constraint.is_complete
        if self._stops.matched is not None or is_complete:
            self._finish_reason = "stop"
        elif len(self._ids) == self._limit:
            self._finish_reason = "length"
        return text

    def cancel(self) -> None:
        """End the answer here; no effect on one that is over."""
        self._finish_reason = self._finish_reason or "cancelled"

    def read_rest(self) -> str:
        """Return the text that was held back, now that no more comes."""
        if self._stops.matched is not None:
            return ""
        text = self._stops.push(self._decoder.flush())
        if self._stops.matched is None:
            text += self._stops.flush()
        else:
            self._finish_reason = "stop"
        self._texts.append(text)
        return text

    def result(self) -> Result:
        """Return the answer as it is now; one that is not over counts as cancelled."""
        later_s = self._tokens_s[1:]
        total_s = sum(later_s)  # 0 by a clock too coarse for the engine
        stats = Stats(
            prompt_tokens=len(self.prompt_ids),
            reused_tokens=self.reused_tokens,
            generated_tokens=len(self._ids),
            first_token_s=self._tokens_s[0] if self._tokens_s else None,
            median_token_s=median(later_s) if later_s else None,
            tok_per_s=len(later_s) / total_s if total_s else None,
        )
        reason = self._finish_reason or "cancelled"
        return Result("".join(self._texts), tuple(self._ids), reason, stats, self._end)

    def _without_unknown(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits in which a token that the tokenizer does not know cannot be chosen.

        A model may have more rows than its tokenizer has tokens: tables are padded to round sizes.
        """
        if logits.size <= self._vocabulary_size:
            return logits
        known = logits.copy()
        known[self._vocabulary_size :] = -np.inf
        return known

    def _without_early_end(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits in which no id can be chosen that must not end the answer here."""
        is_early = len(self._ids) < self._settings.min_tokens
        never_ids = self._stop_ids if is_early else self._never_ids
        if not never_ids:
            return logits
        longer = logits.copy()
        longer[list(never_ids)] = -np.inf
        return logits if longer.max() == -np.inf else longer  # a grammar may allow nothing but the end

    def _with_logprobs(self, logits: NDArray[np.float32], token_id: int) -> TokenChosen:
        count = self._settings.logprobs
        return TokenChosen(token_id) if count is None else _with_logprobs(logits, token_id, count)


def _with_logprobs(logits: NDArray[np.float32], token_id: int, count: int) -> TokenChosen:
    own, *top = logprobs(logits, token_id, count)
    return TokenChosen(token_id, own.logprob, tuple(top))
