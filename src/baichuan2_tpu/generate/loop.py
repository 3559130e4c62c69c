"""The loop over tokens: feed the prompt, choose, show, feed, until the answer ends.

Not here: the order of messages in the prompt (``text.template``), keeping them (``chat``), many answers at
once (the server's scheduler).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Engine, check_room
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.answer import SCORED_ROWS, Answer
from baichuan2_tpu.generate.engine_limits import check_candidates
from baichuan2_tpu.generate.events import (
    Event,
    FinishReason,
    PromptScored,
    Result,
    Stats,
    TextPiece,
    TokenChosen,
)
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = [
    "Event",
    "FinishReason",
    "PromptScored",
    "ReadProgress",
    "Result",
    "Stats",
    "TextPiece",
    "TokenChosen",
    "check_prompt",
    "generate",
]

ReadProgress = Callable[[int, int], object]
"""Is called with how many tokens of a prompt were read, and how many it has."""


def generate(
    sequence: TrackedSequence,
    tokenizer: Tokenizer,
    prompt_ids: Sequence[int],
    settings: GenerationSettings,
    is_cancelled: Callable[[], bool] = lambda: False,
    *,
    progress: ReadProgress | None = None,
) -> Generator[Event, None, None]:
    """Answer a prompt, continuing from what the sequence already holds of it.

    The answer ends with a stop id of the settings, the tokenizer or the model, a stop string, ``max_tokens``,
    the end of the context, or when ``is_cancelled`` says so between two tokens or pieces of the prompt.
    ``progress`` is called after each piece of the prompt.

    Side effect: the sequence holds the prompt and all of the answer but its last token; after an error or an
    early end, a beginning of that.
    Raises: RequestError for an empty prompt, or settings the engine cannot serve; ContextLengthError when
    the prompt does not fit; BackendError when the engine fails or gives no numbers.
    """
    engine = sequence.engine
    check_prompt(engine, prompt_ids, settings)
    answer = Answer(
        tokenizer, prompt_ids, settings, eos_ids=engine.config.eos_ids, max_context=engine.max_context
    )
    logits = yield from _prefill(sequence, answer, is_cancelled, progress)
    while logits is not None:
        chosen = answer.choose(logits[-1])
        if chosen is None:
            break
        yield chosen
        text = answer.read(chosen.token_id)
        if text:
            yield TextPiece(text)
        logits = _feed_back(sequence, answer, chosen.token_id, is_cancelled)
    rest = answer.read_rest()
    if rest:
        yield TextPiece(rest)
    yield answer.result()


def check_prompt(engine: Engine, prompt_ids: Sequence[int], settings: GenerationSettings) -> None:
    """Check that the engine can answer a prompt with these settings.

    Raises: RequestError, ContextLengthError; see ``generate``.
    """
    if not prompt_ids:
        raise RequestError("the prompt is empty; one token or more is needed")
    check_room(0, len(prompt_ids), engine.max_context)
    check_candidates(engine, settings)


def _prefill(
    sequence: TrackedSequence,
    answer: Answer,
    is_cancelled: Callable[[], bool],
    progress: ReadProgress | None,
) -> Generator[PromptScored, None, NDArray[np.float32] | None]:
    """Feed what is new of the prompt and return the logits behind it; None when cancelled."""
    answer.reused_tokens = sequence.keep_prefix(answer.reusable_ids)
    last = len(answer.prompt_ids) - 1
    logits = None
    piece_size = sequence.engine.prompt_piece
    step = min(piece_size, SCORED_ROWS) if answer.is_scoring else piece_size
    for start in range(answer.reused_tokens, last + 1, step):
        if is_cancelled():
            answer.cancel()
            return None
        piece = answer.prompt_ids[start : start + step]
        logits = sequence.feed(piece, len(piece) if answer.is_scoring else int(start + len(piece) > last))
        if progress is not None:
            progress(start + len(piece), last + 1)
        scored = answer.score(logits, start)
        if scored is not None:
            yield scored
    return logits


def _feed_back(
    sequence: TrackedSequence, answer: Answer, token_id: int, is_cancelled: Callable[[], bool]
) -> NDArray[np.float32] | None:
    """Feed the chosen token; None when it was the last one."""
    if not answer.is_over and is_cancelled():
        answer.cancel()
    if answer.is_over:
        return None
    answer.start_token()
    return sequence.feed([token_id])
