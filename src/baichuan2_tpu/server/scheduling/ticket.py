"""What crosses between the threads of a server: a request one way, the events of its answer the other.

Not here: serving them (``scheduler``), what a client sent (``server.api``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from threading import Condition

from baichuan2_tpu.generate.events import Event, Result
from baichuan2_tpu.generate.settings import GenerationSettings

__all__ = ["Progress", "Request", "Ticket"]


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to answer.

    Requests of the same ``client`` take turns with those of others. Only requests of the same ``tenant``
    share kept beginnings: it stands for a key that a client cannot choose, as it can its ``client``.
    ``timeout_s`` counts from ``submit`` to the end of the answer.
    """

    prompt_ids: tuple[int, ...]
    settings: GenerationSettings
    timeout_s: float | None = None
    client: str = ""
    tenant: str = ""


@dataclass(frozen=True, slots=True)
class Progress:
    """How many tokens of a prompt were read, those of kept beginnings included.

    The prompt of an answer that was preempted has what was written of the answer behind it.
    """

    read_tokens: int
    prompt_tokens: int

    @property
    def is_complete(self) -> bool:
        """Whether the answer is being written."""
        return self.read_tokens == self.prompt_tokens


class Ticket:
    """The events of one answer, read once, with ``for`` in a thread or ``async for`` in an event loop.

    The last event is the Result; an answer that failed ends with its error instead, which reading raises. To
    stop reading early is to cancel.
    """

    def __init__(self) -> None:
        self.progress: Progress | None = None
        """How far the prompt is; None while it waits. Set by who serves it, looked at by any thread."""
        self._items: deque[Event | Exception] = deque()
        self._changed = Condition()
        self._notify_reader: Callable[[], object] | None = None
        self._is_cancelled = False
        self._last: Result | Exception | None = None

    @property
    def is_cancelled(self) -> bool:
        """Whether nobody wants the rest of the answer."""
        return self._is_cancelled

    @property
    def is_over(self) -> bool:
        """Whether the Result or an error has come, read or not."""
        return self._last is not None

    @property
    def is_failed(self) -> bool:
        """Whether it ended with an error."""
        return isinstance(self._last, Exception)

    def cancel(self) -> None:
        """End the answer before its next token; its Result says so. No effect on one that is over."""
        self._is_cancelled = True

    def put(self, item: Event | Exception) -> None:
        """Append an event, or the error that ends the answer, for a reader in any thread."""
        with self._changed:
            self._items.append(item)
            if isinstance(item, (Result, Exception)):
                self._last = item
            notify_reader = self._notify_reader
            self._changed.notify_all()
        if notify_reader is not None:
            try:
                notify_reader()
            except RuntimeError:  # the reader's event loop is closed
                self.cancel()

    def __iter__(self) -> Generator[Event, None, None]:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._items or self.is_over)
                    if not self._items:
                        return
                    event = self._next()
                yield event
        finally:
            self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Event, None]:
        loop = asyncio.get_running_loop()
        arrived = asyncio.Event()
        with self._changed:
            self._notify_reader = lambda: loop.call_soon_threadsafe(arrived.set)
            arrived.set()  # something may have come before there was a reader
        try:
            while True:
                await arrived.wait()
                arrived.clear()
                while self._items:
                    event = self._next()
                    yield event
                # In this order: what ends a ticket is in its items before it is over.
                if self.is_over and not self._items:
                    return
        finally:
            self.cancel()

    def _next(self) -> Event:
        item = self._items.popleft()
        if isinstance(item, Exception):
            raise item
        return item
