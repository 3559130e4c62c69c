"""The answers to one HTTP request, in pieces as they come or complete.

Not here: how OpenAI writes them (``api.chat_output``, ``api.completion``), generating them (``step``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from typing_extensions import Self

from baichuan2_tpu.generate.events import Event, PromptScored, Result, TextPiece, TokenChosen
from baichuan2_tpu.server.scheduling.ticket import Progress, Ticket

__all__ = ["Answers", "Piece", "WholeAnswer"]

Observe = Callable[[AsyncGenerator[Event, None]], AsyncGenerator[Event, None]]


@dataclass(frozen=True, slots=True)
class Piece:
    """What is new in one answer: the tokens since the previous piece, and the text that can now be shown.

    The tokens of a scored prompt come first. ``result`` comes with the last piece of an answer only.
    """

    index: int
    text: str
    tokens: tuple[TokenChosen, ...]
    result: Result | None = None


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer and its tokens with the requested log probabilities."""

    result: Result
    tokens: tuple[TokenChosen, ...]


class Answers:
    """Tickets that belong together; leaving a ``with`` cancels those that are not over.

    ``observe`` sees every event and passes it on.
    """

    def __init__(self, tickets: Sequence[Ticket], observe: Observe) -> None:
        self._tickets = tickets
        self._observe = observe

    @property
    def progress(self) -> Progress | None:
        """How far all prompts together are that have begun; None while all wait."""
        all_progress = [ticket.progress for ticket in self._tickets]  # each looked at once: it may change
        begun = [progress for progress in all_progress if progress is not None]
        if not begun:
            return None
        read_tokens = sum(progress.read_tokens for progress in begun)
        return Progress(read_tokens, sum(progress.prompt_tokens for progress in begun))

    def cancel(self) -> None:
        """End every answer before its next token."""
        for ticket in self._tickets:
            ticket.cancel()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield what is new in any answer, as it comes, until all are over.

        Raises: the first error of any answer.
        """
        chosen: list[list[TokenChosen]] = [[] for _ in self._tickets]
        events = _merge([self._observe(aiter(ticket)) for ticket in self._tickets])
        try:
            async for index, event in events:
                tokens = chosen[index]
                if isinstance(event, PromptScored):
                    tokens += event.tokens
                elif isinstance(event, TokenChosen):
                    tokens.append(event)
                else:
                    text, result = (event.text, None) if isinstance(event, TextPiece) else ("", event)
                    yield Piece(index, text, tuple(tokens), result)
                    tokens.clear()
        finally:
            await events.aclose()

    async def collect(self) -> list[WholeAnswer]:
        """Wait for all answers and return them, in the order of their requests.

        Raises: the first error of any answer.
        """
        tokens: list[list[TokenChosen]] = [[] for _ in self._tickets]
        results: dict[int, Result] = {}
        async for piece in self.pieces():
            tokens[piece.index] += piece.tokens
            if piece.result is not None:
                results[piece.index] = piece.result
        return [WholeAnswer(results[index], tuple(chosen)) for index, chosen in enumerate(tokens)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()


async def _merge(streams: list[AsyncGenerator[Event, None]]) -> AsyncGenerator[tuple[int, Event], None]:
    """Yield the events of all streams as they come, each with the index of its stream."""
    waiting = {asyncio.ensure_future(anext(stream)): index for index, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                index = waiting.pop(task)
                event = task.result()
                if not isinstance(event, Result):
                    waiting[asyncio.ensure_future(anext(streams[index]))] = index
                yield index, event
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for stream in streams:
            await stream.aclose()
