"""One connection: what is received in time, half-closed clients, and faults of HTTP as error objects.

A connection on which no request begins, or whose request head arrives too slowly, is closed, and a head that
is not complete after 64 KB is refused: limits that uvicorn leaves to a proxy in front of it.

A client may close its sending half once its request is complete, and still be answered. TCP does not tell it
from one that has left until something is sent, which the machine of one that has left answers with a reset.
So "100 Continue" is sent, which clients skip (RFC 9110, 15.2), and a reset then cancels the answer. Over TLS
both halves close together.
Not here: the port (``listening``), limits of a body (``guards``).
Source: uvicorn 0.54's ``H11Protocol``, its only protocol that limits the head; tcp(7) for ``SO_ERROR``.
"""

from __future__ import annotations

import asyncio
import socket
from email.utils import formatdate
from typing import cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from baichuan2_tpu.server.errors import ApiError, describe

__all__ = ["Connection"]

_HEAD_S = 30
"""Time to receive the head of a request."""
_LOOK_S = 0.1
"""Time between two looks whether a half-closed client has left."""


class Connection(H11Protocol):
    """HTTP/1.1 with a client, closed when no request arrives in time; TLS, if any, lies below."""

    _closing: asyncio.TimerHandle | None = None
    _is_half_closed = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._update_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Receive part of a request, possibly of one that was answered before it was complete."""
        # What the response to a request begins with is taken when its head is complete.
        date = formatdate(usegmt=True).encode()
        self.server_state.default_headers = [(b"date", date), *self.config.encoded_headers]
        super().data_received(data)
        self._update_timer()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection of a client that sends no more while its complete request is answered."""
        if self.scheme == "https" or not self._is_answering or self.cycle.more_body:
            return False
        self._is_half_closed = True
        if not self.cycle.response_started and self.scope["http_version"] != "1.0":
            self._send(h11.InformationalResponse(status_code=100, headers=[], reason=b"Continue"))
        self._look_for_client()
        return True

    def on_response_complete(self) -> None:
        """Close the connection of a client that sends no more once it has its answers."""
        super().on_response_complete()
        if self._is_half_closed and not self._is_answering:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own text
        """Answer what is not HTTP with an error object, and close the connection."""
        error = ApiError(
            "the request is not valid HTTP/1.1, or its head is larger than 64 KB; send less in its headers",
            code="invalid_http",
        )
        body = describe(error).body.model_dump_json().encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        self._send(h11.Response(status_code=400, headers=headers, reason=b"Bad Request"))
        self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        self.transport.close()

    def _send(self, event: h11.Event) -> None:
        self.transport.write(self.conn.send(event) or b"")

    def _look_for_client(self) -> None:
        """Give a half-closed connection up, now or later, if its client turns out to have left."""
        if self.transport.is_closing():
            return
        connected = cast("socket.socket", self.transport.get_extra_info("socket"))
        if connected.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self.loop.call_later(_LOOK_S, self._look_for_client)

    @property
    def _is_answering(self) -> bool:
        cycle = cast("RequestResponseCycle | None", self.cycle)  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _update_timer(self) -> None:
        """Run the timer while no request is being answered."""
        if self._is_answering or self.transport.is_closing():
            self._stop_timer()
        elif self._closing is None:
            self._closing = self.loop.call_later(_HEAD_S, self._close)

    def _stop_timer(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _close(self) -> None:
        self._closing = None
        # A request may have arrived together with the end of the previous one, and be in work now.
        if not self._is_answering:
            self.transport.close()
