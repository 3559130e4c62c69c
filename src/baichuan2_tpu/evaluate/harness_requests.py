"""From what a task of lm-evaluation-harness asks to passages and questions in a model's tokens.

Not here: the harness itself (``harness_model``), scoring.
Source: ``TemplateLM`` and ``HFLM`` of lm-evaluation-harness 0.4.13 for where a context ends, what stands
before an empty one, what is cut off, and the defaults of generation.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import cast

from baichuan2_tpu.errors import ContextLengthError, RequestError
from baichuan2_tpu.evaluate.batch_answers import Question
from baichuan2_tpu.evaluate.passages import Passage
from baichuan2_tpu.evaluate.scored_text import cut
from baichuan2_tpu.evaluate.subject import Subject
from baichuan2_tpu.generate.settings import GenerationSettings, SamplingSettings
from baichuan2_tpu.text.messages import Message
from baichuan2_tpu.text.template import ChatTemplate

__all__ = ["HarnessRequests"]

_DEFAULT_ANSWER_TOKENS = 256
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class HarnessRequests:
    """Writes a task's texts as tokens of one model, and counts what had to be cut."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._chats: dict[str, tuple[Message, ...]] = {}
        self.cut_requests = 0
        """Contexts whose beginning, or whose first examples in a chat, did not fit."""

    def chat(self, messages: Sequence[Mapping[str, str]], *, is_answered: bool) -> str:
        """Return a text that stands for a conversation wherever it comes back as a context.

        No text can hold role marks here, so the harness never sees the conversation's own tokens.
        Raises: RequestError for a model without a template, or an answer that the task begins itself.
        """
        if self._subject.template is None:
            raise RequestError(f"{self._subject.name} knows no chat; leave --chat out")
        if is_answered:
            raise RequestError("the task begins the answer itself (gen_prefix); leave --chat out")
        key = json.dumps(list(messages), ensure_ascii=False)
        roles = {"system", "user", "assistant"}
        for message in messages:
            if message["role"] not in roles:
                raise RequestError(f"the task asks in the role {message['role']!r}; leave --chat out")
        self._chats[key] = tuple(Message(message["role"], message["content"]) for message in messages)  # pyright: ignore[reportArgumentType] - checked above
        return key

    def passage(self, context: str, continuation: str) -> Passage:
        """Return a continuation to score behind its context, whose beginning is cut if need be.

        Raises: RequestError for nothing to score; ContextLengthError for a continuation beyond the context,
        or a question of a chat that leaves no room for it.
        """
        joined, ids = self._pair(context, continuation)
        if not ids:
            raise RequestError(f"the task has an empty continuation behind {context[-60:]!r}; check the task")
        longest = self._subject.scorer.max_context + 1  # the last token is scored and not read
        if len(ids) >= longest:
            raise ContextLengthError(
                f"the task has a continuation of {len(ids)} tokens, and the context holds {longest - 1}; "
                "open the model with a larger --context"
            )
        room = longest - len(ids)
        kept = self._context_ids(context, room) if joined is None else self._cut_to_fit(joined, room)
        return Passage((*kept, *ids), len(kept))

    def document(self, text: str) -> list[Passage]:
        """Return a whole text to score, cut as the harness cuts it.

        Raises: RequestError for an empty text.
        """
        ids = self._subject.tokenizer.encode(text)
        if not ids:
            raise RequestError("the task has an empty document; check the task")
        context = self._subject.scorer.max_context
        return list(cut([self._prefix_id(), *ids], context + 1, context))

    def question(self, context: str, settings: Mapping[str, object]) -> Question:
        """Return a prompt to answer; its beginning is cut if need be.

        Raises: RequestError for a setting that cannot be served; ContextLengthError for too long an answer,
        or a question of a chat that leaves no room for it.
        """
        answering = _generation_settings(settings)
        room = self._subject.scorer.max_context - answering.max_tokens
        if room < 1:
            raise ContextLengthError(
                f"the task asks for answers of {answering.max_tokens} tokens, and the context holds "
                f"{self._subject.scorer.max_context}; open the model with a larger --context"
            )
        return Question(tuple(self._context_ids(context, room)), answering)

    def _pair(self, context: str, continuation: str) -> tuple[list[int] | None, list[int]]:
        """Return the ids of both; a tokenizer may join what is on both sides of the border.

        None stands for a context that it cannot join with anything: none, or a conversation.
        """
        encode = self._subject.tokenizer.encode
        if not context or context in self._chats:
            return None, encode(continuation)
        # A space at the end of the context belongs to the first word behind it.
        bare = context.rstrip()
        whole = encode(context + continuation)
        context_ids = encode(bare)
        return context_ids or [self._prefix_id()], whole[len(context_ids) :]

    def _context_ids(self, context: str, room: int) -> list[int]:
        """Return what fits of a context, of the conversation it stands for, or what stands for none."""
        template = self._subject.template
        if template is not None and context in self._chats:
            return self._render(template, self._chats[context], room)
        return self._cut_to_fit(self._subject.tokenizer.encode(context) or [self._prefix_id()], room)

    def _render(self, template: ChatTemplate, messages: tuple[Message, ...], room: int) -> list[int]:
        """Return the newest rounds that fit: a round cut in its middle would have lost its role mark.

        Raises: ContextLengthError where the question by itself does not fit.
        """
        try:
            prompt = template.render(messages, room)
        except ContextLengthError as error:
            alone = [*(message for message in messages[:-1] if message.role == "system"), messages[-1]]
            length = len(template.render(alone, sys.maxsize).ids)
            raise ContextLengthError(
                f"the task asks a question of {length} tokens in a chat, and {self._subject.name} has room "
                f"for {room} before the answer; open the model with a larger --context, or leave --chat out"
            ) from error
        self.cut_requests += prompt.dropped_rounds > 0
        return list(prompt.ids)

    def _prefix_id(self) -> int:
        """Return the id that stands before a text: the model's first id of a text, or its last."""
        config = self._subject.config
        ids = ([] if config.bos_id is None else [config.bos_id]) + sorted(config.eos_ids)
        if not ids:
            raise RequestError(
                "the task needs a token before its texts, and the model names neither bos nor eos"
            )
        return ids[0]

    def _cut_to_fit(self, ids: list[int], room: int) -> list[int]:
        """Return the last ids that fit."""
        self.cut_requests += len(ids) > room
        return ids[-room:]


def _generation_settings(values: Mapping[str, object]) -> GenerationSettings:
    """Return how a task wants its answers.

    Raises: RequestError naming a setting that is not known.
    """
    known = {"until", "do_sample", "seed", *_LENGTHS, *_SAMPLING}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise RequestError(f"the task's generation_kwargs ask for {unknown[0]}; allowed are {sorted(known)}")
    until = values.get("until")
    stops = [until] if isinstance(until, str) else cast("list[str]", until or [])
    lengths = [values[name] for name in _LENGTHS if values.get(name) is not None]
    return GenerationSettings(
        sampling=_sampling(values),
        max_tokens=cast("int", lengths[0]) if lengths else _DEFAULT_ANSWER_TOKENS,
        stop=tuple(stop for stop in stops if stop),
    )


def _sampling(values: Mapping[str, object]) -> SamplingSettings:
    """Return greedy sampling, unless the task says otherwise; its seed makes a run repeatable."""
    if values.get("do_sample") is not True:
        return SamplingSettings(temperature=0)
    asked = {name: values[name] for name in _SAMPLING if values.get(name) is not None}
    seed = cast("int", values.get("seed") or 0)
    return SamplingSettings(seed=seed, **asked)  # pyright: ignore[reportArgumentType] - the ranges are checked there
