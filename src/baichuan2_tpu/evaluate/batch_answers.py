"""Answer many prompts with one engine, several at a time: what tasks that ask for text need.

Not here: scoring (``engine_scorer``), a server's queue (``server.scheduling``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.evaluate.passages import Progress
from baichuan2_tpu.generate.answer import Answer
from baichuan2_tpu.generate.loop import check_prompt
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.generate.tracked_sequence import Feed, TrackedSequence, feed_together
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["Question", "answer_questions"]

_ANSWERED_TOGETHER = 4
"""Enough to read the weights a quarter as often, few enough for the keys and values of long prompts."""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt as ids, and how it is to be answered."""

    ids: tuple[int, ...]
    settings: GenerationSettings


@dataclass(slots=True)
class _Running:
    """One answer while it grows, and the logits behind its last token."""

    place: int
    answer: Answer
    sequence: TrackedSequence
    logits: NDArray[np.float32]


def answer_questions(
    engine: Engine, tokenizer: Tokenizer, questions: Sequence[Question], on_progress: Progress | None = None
) -> list[str]:
    """Answer every question and return the texts in their order.

    Prompts that begin alike are answered one after the other, and continue from what is held already.
    Raises: RequestError for an empty prompt or settings the engine cannot serve; ContextLengthError.
    """
    for question in questions:
        check_prompt(engine, question.ids, question.settings)
    waiting = sorted(range(len(questions)), key=lambda place: questions[place].ids, reverse=True)
    texts: dict[int, str] = {}
    with ExitStack() as stack:
        longest = max((len(question.ids) + question.settings.max_tokens for question in questions), default=1)
        most = engine.sequences_of(min(longest, engine.max_context))
        together = min(_ANSWERED_TOGETHER, most, len(questions))
        idle = [stack.enter_context(TrackedSequence(engine)) for _ in range(together)]
        running: list[_Running] = []
        while waiting or running:
            while waiting and idle:
                place = waiting.pop()
                running.append(_start(place, questions[place], tokenizer, idle))
            unfinished = _step(running)
            for item in running:
                if item not in unfinished:
                    item.answer.read_rest()
                    texts[item.place] = item.answer.result().text
                    idle.append(item.sequence)
            running = unfinished
            if on_progress is not None:
                on_progress(len(texts), len(questions))
    return [texts[place] for place in range(len(questions))]


def _start(place: int, question: Question, tokenizer: Tokenizer, idle: list[TrackedSequence]) -> _Running:
    """Read a prompt into the idle sequence that holds most of it."""
    sequence = max(idle, key=lambda sequence: sequence.common_prefix(question.ids))
    idle.remove(sequence)
    engine = sequence.engine
    answer = Answer(
        tokenizer,
        question.ids,
        question.settings,
        eos_ids=engine.config.eos_ids,
        max_context=engine.max_context,
    )
    start = sequence.keep_prefix(question.ids)
    rest = question.ids[start:]
    while len(rest) > engine.prompt_piece:
        sequence.feed(rest[: engine.prompt_piece], 0)
        rest = rest[engine.prompt_piece :]
    return _Running(place, answer, sequence, sequence.feed(rest)[-1])


def _step(running: Sequence[_Running]) -> list[_Running]:
    """Choose a token for each answer, feed those that are not the last, and return the unfinished answers."""
    feeds: list[Feed] = []
    unfinished: list[_Running] = []
    for item in running:
        chosen = item.answer.choose(item.logits)
        if chosen is None:
            continue
        item.answer.read(chosen.token_id)
        if not item.answer.is_over:
            item.answer.start_token()
            feeds.append(Feed(item.sequence, (chosen.token_id,)))
            unfinished.append(item)
    if feeds:
        for item, rows in zip(unfinished, feed_together(feeds), strict=True):
            item.logits = rows[-1]
    return unfinished
