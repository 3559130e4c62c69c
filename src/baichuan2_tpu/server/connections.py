"""Connections of clients, with the bounds that uvicorn leaves to a proxy in front of it.

A connection on which no request begins, or whose head comes in drips, is closed; a head that is not whole
after 64 KB is refused.
Not here: how large a body may be and how long it may take (``limits``).
Source: ``H11Protocol`` of uvicorn 0.54, which alone of uvicorn's protocols bounds the head.
"""

from __future__ import annotations

import asyncio
from typing import cast

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

__all__ = ["Connection"]

_HEAD_S = 30
"""Time for the head of a request."""


class Connection(H11Protocol):
    """HTTP/1.1 with a client; TLS, if any, is done before."""

    _closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no longer."""
        self._unwatch()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request, or of one that was answered before it was whole."""
        super().data_received(data)
        self._watch()

    @property
    def _is_answering(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _watch(self) -> None:
        """Let the time run while no request is being answered."""
        if self._is_answering or self.transport.is_closing():
            self._unwatch()
        elif self._closing is None:
            self._closing = self.loop.call_later(_HEAD_S, self._close)

    def _unwatch(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _close(self) -> None:
        self._closing = None
        # A request may have come in one piece with the end of the one before, and is answered now.
        if not self._is_answering:
            self.transport.close()
