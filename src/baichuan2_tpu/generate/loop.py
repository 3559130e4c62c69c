"""The loop over tokens: feed the prompt, choose, show, feed, until the answer ends.

Not here: the order of messages in the prompt (``text.template``), keeping them (``chat``), batching.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Engine, check_room
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.candidates import check_candidates
from baichuan2_tpu.generate.sampling import TokenLogprob, choose, logprobs
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.generate.stops import StopStrings
from baichuan2_tpu.generate.tracked import TrackedSequence
from baichuan2_tpu.text.stream import StreamDecoder
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["Event", "FinishReason", "Result", "Stats", "TextPiece", "TokenChosen", "generate"]

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
    """The whole answer; the last event, always.

    ``text`` is all text pieces together, without the stop string; ``token_ids`` has no stop id.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats


Event = TextPiece | TokenChosen | Result


def generate(
    sequence: TrackedSequence,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    settings: GenerationSettings,
    is_cancelled: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, None]:
    """Answer a prompt, going on from what the sequence already holds of it.

    The answer ends with a stop id of the settings, the tokenizer or the model, a stop string, ``max_tokens``,
    the end of the context, or when ``is_cancelled`` says so between two tokens or pieces of the prompt.

    Side effect: the sequence holds the prompt and all of the answer but its last token; after an error or an
    early end, a beginning of that.
    Raises: RequestError for an empty prompt, or settings the engine cannot serve; ContextLengthError when
    the prompt does not fit; BackendError when the engine fails or gives no numbers.
    """
    _check(sequence.engine, prompt_ids, settings)
    answer = _Answer(sequence, tokenizer, prompt_ids, settings)
    logits = answer.prefill(is_cancelled)
    while logits is not None:
        chosen = answer.choose(logits)
        if chosen is None:
            break
        yield chosen
        text = answer.read(chosen.token_id)
        if text:
            yield TextPiece(text)
        logits = answer.feed_back(chosen.token_id, is_cancelled)
    rest = answer.read_rest()
    if rest:
        yield TextPiece(rest)
    yield answer.result()


def _check(engine: Engine, prompt_ids: Sequence[int], settings: GenerationSettings) -> None:
    if not prompt_ids:
        raise RequestError("the prompt is empty; one token or more is needed")
    check_room(0, len(prompt_ids), engine.max_context)
    check_candidates(engine, settings)


@dataclass(slots=True)
class _Clock:
    """Seconds of work for each token, the first one's with the prompt's."""

    tokens_s: list[float] = field(default_factory=list[float])
    _started_s: float = field(default_factory=time.perf_counter)

    def start(self) -> None:
        self._started_s = time.perf_counter()

    def token(self) -> None:
        self.tokens_s.append(time.perf_counter() - self._started_s)


class _Answer:
    """An answer while it grows."""

    def __init__(
        self,
        sequence: TrackedSequence,
        tokenizer: Tokenizer,
        prompt_ids: Sequence[int],
        settings: GenerationSettings,
    ) -> None:
        self._clock = _Clock()
        self._sequence = sequence
        self._prompt_ids = prompt_ids
        self._settings = settings
        self._stop_ids = settings.stop_ids | tokenizer.stop_ids | frozenset(sequence.engine.config.eos_ids)
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopStrings(settings.stop)
        self._generator = np.random.default_rng(settings.sampling.seed)
        # The token that fills the context's last place is fed, and the one after it still chosen.
        room = sequence.engine.max_context - len(prompt_ids) + 1
        self._limit = min(settings.max_tokens, room)
        self._history = np.zeros(len(prompt_ids) + self._limit, np.intp)
        self._history[: len(prompt_ids)] = prompt_ids
        self._ids: list[int] = []
        self._texts: list[str] = []
        self._reused = 0
        self._finish_reason: FinishReason = "stop"

    def prefill(self, is_cancelled: Callable[[], bool]) -> NDArray[np.float32] | None:
        """Feed what is new of the prompt; None when cancelled."""
        self._reused = self._sequence.keep_prefix(self._prompt_ids)
        last = len(self._prompt_ids) - 1
        logits = None
        step = self._sequence.engine.prompt_piece
        for start in range(self._reused, last + 1, step):
            if is_cancelled():
                self._finish_reason = "cancelled"
                return None
            piece = self._prompt_ids[start : start + step]
            logits = self._sequence.feed(piece, int(start + len(piece) > last))
        return logits

    def choose(self, logits: NDArray[np.float32]) -> TokenChosen | None:
        """Choose the next token; None when it ends the answer."""
        row = logits[-1]
        length = len(self._prompt_ids) + len(self._ids)
        token_id = choose(row, self._settings.sampling, self._history[:length], self._generator)
        self._clock.token()
        if token_id in self._stop_ids:
            return None
        self._history[length] = token_id
        self._ids.append(token_id)
        if self._settings.logprobs is None:
            return TokenChosen(token_id)
        own, *top = logprobs(row, token_id, self._settings.logprobs)
        return TokenChosen(token_id, own.logprob, tuple(top))

    def read(self, token_id: int) -> str:
        """Return the text this token lets be shown."""
        text = self._stops.push(self._decoder.push(token_id))
        self._texts.append(text)
        return text

    def feed_back(self, token_id: int, is_cancelled: Callable[[], bool]) -> NDArray[np.float32] | None:
        """Feed the chosen token; None when it was the last one."""
        if self._stops.matched is not None:
            return None
        if len(self._ids) == self._limit:
            self._finish_reason = "length"
            return None
        if is_cancelled():
            self._finish_reason = "cancelled"
            return None
        self._clock.start()
        return self._sequence.feed([token_id])

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
        """Return the answer as it is now."""
        later_s = self._clock.tokens_s[1:]
        stats = Stats(
            prompt_tokens=len(self._prompt_ids),
            reused_tokens=self._reused,
            generated_tokens=len(self._ids),
            first_token_s=self._clock.tokens_s[0] if self._clock.tokens_s else None,
            median_token_s=median(later_s) if later_s else None,
            tok_per_s=len(later_s) / sum(later_s) if later_s else None,
        )
        return Result("".join(self._texts), tuple(self._ids), self._finish_reason, stats)
