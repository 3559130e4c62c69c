"""A conversation: messages, and answers that continue from what the engine already holds.

Not here: reading from a terminal (``cli``), many conversations on one engine (``server``).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import cast

from typing_extensions import Self

from baichuan2_tpu.engine.base import Engine
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.files import read_json, write_json
from baichuan2_tpu.generate.loop import (
    Event,
    PromptScored,
    ReadProgress,
    Result,
    TextPiece,
    TokenChosen,
    generate,
)
from baichuan2_tpu.generate.settings import GenerationSettings
from baichuan2_tpu.generate.tracked_sequence import TrackedSequence
from baichuan2_tpu.quoting import quote
from baichuan2_tpu.text.messages import Message, Role, check_order
from baichuan2_tpu.text.template import ChatTemplate
from baichuan2_tpu.text.tokenizer import Tokenizer

__all__ = [
    "AnswerPiece",
    "Conversation",
    "join_events",
    "prompt_budget",
    "read_message",
    "read_result",
]

_FORMAT = "baichuan2-tpu conversation 1"


@dataclass(frozen=True, slots=True)
class AnswerPiece:
    """What is new in an answer; only the last piece has the ``result``.

    ``tokens`` are those chosen since the previous piece, with the log probabilities that were asked for, and
    ``prompt_tokens`` those of the prompt, where ``prompt_logprobs`` asked for them. ``dropped_rounds`` of the
    oldest rounds of the conversation did not fit the context and are not in the prompt.
    """

    text: str
    tokens: tuple[TokenChosen, ...] = ()
    prompt_tokens: tuple[TokenChosen, ...] = ()
    dropped_rounds: int = 0
    result: Result | None = None


def join_events(events: Iterable[Event], dropped_rounds: int = 0) -> Generator[AnswerPiece, None, None]:
    """Join the events of an answer into pieces of text, each with the tokens that it took."""
    tokens: list[TokenChosen] = []
    prompt_tokens: tuple[TokenChosen, ...] = ()
    for event in events:
        if isinstance(event, PromptScored):
            prompt_tokens = event.tokens
        elif isinstance(event, TokenChosen):
            tokens.append(event)
        else:
            text, result = (event.text, None) if isinstance(event, TextPiece) else ("", event)
            yield AnswerPiece(text, tuple(tokens), prompt_tokens, dropped_rounds, result)
            tokens.clear()
            prompt_tokens = ()


def read_result(pieces: Iterable[AnswerPiece]) -> Result:
    """Read an answer to its end and return it."""
    *_, last = pieces
    assert last.result is not None, "the last piece of an answer has its result"  # noqa: S101 - our invariant
    return last.result


def prompt_budget(max_context: int, max_tokens: int) -> int:
    """Return how many tokens a prompt may have so that an answer fits behind it.

    The official code leaves room for ``max_tokens``; at most half of the context is left here, so that a
    small context still takes a prompt.
    """
    return max_context - min(max_tokens, max_context // 2)


class Conversation:
    """The messages of one conversation, and the engine's memory of the latest prompt and answer.

    ``Model.conversation`` makes one; it is open until ``close``, or to the end of ``with``. Messages change
    only when an answer has its result: the text of a cancelled answer is kept, and a question that was
    cancelled before any text is forgotten. After an error, or if an answer is not read to its end, the
    messages are as before.
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
        """The system message, if there is one, then questions and answers."""
        return (self._system, *self._rounds) if self._system else self._rounds

    @property
    def system(self) -> str | None:
        """The system message; setting it keeps the other messages."""
        return self._system.content if self._system else None

    @system.setter
    def system(self, content: str | None) -> None:
        self._system = Message("system", content) if content else None

    def chat(self, text: str) -> Result:
        """Send a message and return the whole answer.

        Raises: as ``stream``.
        """
        return read_result(self.stream(text))

    def stream(
        self,
        text: str,
        is_cancelled: Callable[[], bool] = lambda: False,
        progress: ReadProgress | None = None,
    ) -> Generator[AnswerPiece, None, None]:
        """Send a message and yield the answer in pieces as they come; the last one has the result.

        ``is_cancelled`` is asked between two tokens and ends the answer there. ``progress`` is called while
        the prompt is read, with the tokens read so far and all tokens.
        Raises: RequestError for an empty text; ContextLengthError when it does not fit beside the system
        message; BackendError when the engine fails.
        """
        yield from self._answer((*self._rounds, Message("user", text)), is_cancelled, progress)

    def retry(
        self, is_cancelled: Callable[[], bool] = lambda: False, progress: ReadProgress | None = None
    ) -> Generator[AnswerPiece, None, None]:
        """Answer the last user message again; the old answer stays until the new one is complete.

        Raises: RequestError when nothing was asked; else as ``stream``.
        """
        if not self._rounds:
            raise RequestError("there is no answer to try again; ask something first")
        yield from self._answer(self._rounds[:-1], is_cancelled, progress)

    def clear(self) -> None:
        """Forget all messages but the system message."""
        self._rounds = ()

    def save(self, path: str | Path) -> None:
        """Write the messages to a file, as JSON.

        Side effect: ``path`` is replaced in one step, once everything is written.
        Raises: RequestError when it cannot be written.
        """
        messages = [{"role": message.role, "content": message.content} for message in self.messages]
        try:
            write_json(Path(path), {"format": _FORMAT, "messages": messages}, ensure_ascii=False)
        except OSError as exc:
            raise RequestError(
                f"cannot save to {path}: {exc.strerror or exc}; name a file in a directory you can write to"
            ) from exc

    def load(self, path: str | Path) -> None:
        """Replace the messages by those of a saved conversation.

        Raises: RequestError, and nothing changes, if the file cannot be read or is not a saved conversation.
        """
        content = read_json(Path(path), RequestError, "name a saved file")
        try:
            messages = _messages(content)
        except RequestError as exc:
            raise RequestError(f"{path}: {exc}") from exc
        has_system = bool(messages) and messages[0].role == "system"
        self._system = messages[0] if has_system else None
        self._rounds = messages[has_system:]

    def close(self) -> None:
        """Free the engine's memory of this conversation; closing twice is allowed."""
        self._sequence.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(
        self, rounds: Sequence[Message], is_cancelled: Callable[[], bool], progress: ReadProgress | None
    ) -> Generator[AnswerPiece, None, None]:
        system = (self._system,) if self._system else ()
        check_order((*system, *rounds))
        budget = prompt_budget(self._max_context, self.settings.max_tokens)
        prompt = self._template.render((*system, *rounds), budget)
        settings = replace(self.settings, stop_ids=self.settings.stop_ids | self._template.stop_ids)
        events = generate(
            self._sequence, self._tokenizer, prompt.ids, settings, is_cancelled, progress=progress
        )
        for piece in join_events(events, prompt.dropped_rounds):
            result = piece.result
            if result is not None and (result.text or result.finish_reason != "cancelled"):
                self._rounds = (*rounds, Message("assistant", result.text))
            yield piece


def _messages(content: Mapping[str, object]) -> tuple[Message, ...]:
    """Check a loaded conversation and return its messages."""
    if content.get("format") != _FORMAT:
        raise RequestError(f"its format is {quote(content.get('format'))}; {_FORMAT!r} is allowed")
    items = content.get("messages")
    if not isinstance(items, list):
        raise RequestError("it has no list of messages; name a saved file")
    messages = tuple(read_message(item) for item in cast("list[object]", items))
    # A conversation can be saved before anything was said.
    if [message.role for message in messages] not in ([], ["system"]):
        check_order(messages)
        if messages[-1].role == "user":
            raise RequestError("its last message has no answer; a saved conversation ends with one")
    return messages


def read_message(item: object) -> Message:
    """Return the message that an object of JSON describes.

    Raises: RequestError for anything but the texts ``role`` and ``content``, or a role that is not known.
    """
    fields = cast("dict[str, object]", item) if isinstance(item, dict) else {}
    role, content = fields.get("role"), fields.get("content")
    if not isinstance(role, str) or not isinstance(content, str) or len(fields) != 2:
        seen = quote(cast("object", item))
        raise RequestError(f"a message is {seen}; an object with the texts role and content is allowed")
    return Message(cast("Role", role), content)
