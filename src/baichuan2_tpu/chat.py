"""A conversation: messages, and answers that go on from what the engine already holds.

Not here: reading from a terminal (``cli``), many conversations on one engine (``server``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import cast

from typing_extensions import Self

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.generate.loop import Event, Result, generate
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.text.messages import Message, Role, check_order
from baichuan2_tpu.text.template import ChatTemplate
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = ["ChatEvent", "Conversation", "RoundsDropped", "prompt_budget"]

_FORMAT = "baichuan2-tpu conversation 1"


@dataclass(frozen=True, slots=True)
class RoundsDropped:
    """The prompt is without this many of the oldest rounds, which no longer fit; comes before the answer."""

    rounds: int


ChatEvent = Event | RoundsDropped


def prompt_budget(max_context: int, max_tokens: int) -> int:
    """Return how many tokens a prompt may have so that an answer fits behind it.

    The official code leaves room for ``max_tokens``; at most half of the context is left here, so that a
    small context still takes a prompt.
    """
    return max_context - min(max_tokens, max_context // 2)


class Conversation:
    """Messages, and a sequence of the engine that holds the latest prompt and answer.

    Messages change only with a Result: a cancelled answer stays as far as it was said, and is forgotten with
    its question when nothing was said; after an error, or when an answer is not read to its Result, they are
    as before.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        settings: GenerationSettings,
        *,
        system: str | None = None,
    ) -> None:
        self.settings = settings
        self._tokenizer = tokenizer
        self._template = template
        self._max_context = engine.max_context
        self._system = Message("system", system) if system else None
        self._rounds: tuple[Message, ...] = ()
        self._sequence = TrackedSequence(engine)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The system message, if there is one, and everything said."""
        return (self._system, *self._rounds) if self._system else self._rounds

    @property
    def system(self) -> str | None:
        """The system message; setting it keeps what was said."""
        return self._system.content if self._system else None

    @system.setter
    def system(self, content: str | None) -> None:
        self._system = Message("system", content) if content else None

    def ask(
        self, text: str, is_cancelled: Callable[[], bool] = lambda: False
    ) -> Generator[ChatEvent, None, None]:
        """Say something and yield the answer as it comes; the last event is the Result.

        Raises: RequestError for an empty text; ContextLengthError when it does not fit beside the system
        message; BackendError when the engine fails.
        """
        yield from self._answer((*self._rounds, Message("user", text)), is_cancelled)

    def retry(self, is_cancelled: Callable[[], bool] = lambda: False) -> Generator[ChatEvent, None, None]:
        """Answer the last user message again; the old answer stays until the new one is there.

        Raises: RequestError when nothing was asked; else as ``ask``.
        """
        if not self._rounds:
            raise RequestError("there is no answer to try again; ask something first")
        yield from self._answer(self._rounds[:-1], is_cancelled)

    def clear(self) -> None:
        """Forget everything said; the system message stays."""
        self._rounds = ()

    def save(self, path: Path) -> None:
        """Write the messages as JSON.

        Side effect: ``path`` is replaced at once, when all is written.
        Raises: RequestError when it cannot be written.
        """
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        content = json.dumps({"format": _FORMAT, "messages": messages}, ensure_ascii=False, indent=2)
        beside = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            beside.write_text(content + "\n", encoding="utf-8")
            beside.replace(path)
        except OSError as exc:
            with suppress(OSError):
                beside.unlink()
            raise RequestError(
                f"cannot save to {path}: {exc.strerror or exc}; name a file in a directory you can write to"
            ) from exc

    def load(self, path: Path) -> None:
        """Take the messages of a saved conversation in place of the present ones.

        Raises: RequestError when the file cannot be read or is no saved conversation; then nothing changed.
        """
        try:
            value: object = json.loads(path.read_bytes())
        except OSError as exc:
            raise RequestError(f"cannot load {path}: {exc.strerror or exc}; name a saved file") from exc
        except (ValueError, RecursionError) as exc:
            raise RequestError(f"cannot load {path}: it is not JSON: {exc}; name a saved file") from exc
        try:
            messages = _messages(value)
        except RequestError as exc:
            raise RequestError(f"cannot load {path}: {exc}") from exc
        has_system = bool(messages) and messages[0].role == "system"
        self._system = messages[0] if has_system else None
        self._rounds = messages[has_system:]

    def close(self) -> None:
        """Give the engine's memory back; closing twice is allowed."""
        self._sequence.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self, rounds: Sequence[Message], is_cancelled: Callable[[], bool]
    ) -> Generator[ChatEvent, None, None]:
        system = (self._system,) if self._system else ()
        check_order((*system, *rounds))
        budget = prompt_budget(self._max_context, self.settings.max_tokens)
        prompt = self._template.render((*system, *rounds), budget)
        if prompt.dropped_rounds:
            yield RoundsDropped(prompt.dropped_rounds)
        settings = replace(self.settings, stop_ids=self.settings.stop_ids | self._template.stop_ids)
        for event in generate(self._sequence, self._tokenizer, prompt.ids, settings, is_cancelled):
            if isinstance(event, Result) and (event.text or event.finish_reason != "cancelled"):
                self._rounds = (*rounds, Message("assistant", event.text))
            yield event


def _messages(value: object) -> tuple[Message, ...]:
    """Check a loaded conversation and return its messages."""
    content = cast("dict[str, object]", value) if isinstance(value, dict) else {}
    if content.get("format") != _FORMAT:
        raise RequestError(f"its format is {content.get('format')!r}; {_FORMAT!r} is allowed")
    items = content.get("messages")
    if not isinstance(items, list):
        raise RequestError("it has no list of messages; name a saved file")
    messages = tuple(_message(item) for item in cast("list[object]", items))
    # A conversation can be saved before anything was said.
    if [message.role for message in messages] not in ([], ["system"]):
        check_order(messages)
        if messages[-1].role == "user":
            raise RequestError("its last message has no answer; a saved conversation ends with one")
    return messages


def _message(item: object) -> Message:
    fields = cast("dict[str, object]", item) if isinstance(item, dict) else {}
    role, content = fields.get("role"), fields.get("content")
    if not isinstance(role, str) or not isinstance(content, str) or len(fields) != 2:
        raise RequestError(f"a message is {item!r}; an object with the texts role and content is allowed")
    return Message(cast("Role", role), content)
