"""A response that is never silent: its head goes out at once, and something follows every few seconds.

Proxies and clients give up a connection on which nothing arrives for ten seconds or a minute, which is less
than a long prompt or a full queue may take. After the head an error cannot change the status any more: it is
the last thing sent.
Not here: what is sent (``event_stream``).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from baichuan2_tpu.errors import ShutdownError
from baichuan2_tpu.server.errors import ErrorBody, describe
from baichuan2_tpu.server.scheduling.answers import Answers

__all__ = ["LiveResponse"]

_QUIET_S = 3
"""Time in which something is sent: a third of the shortest time-outs that proxies are set to, 10 s."""
_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # proxies must pass pieces on at once


class LiveResponse(StreamingResponse):
    """Sends a body as it comes; when the client disconnects, the answers behind it are cancelled.

    ``filler`` returns what is sent when nothing else was for some seconds, such as clients skip. An error of
    ``body`` is sent as ``write_error`` writes it, and ends the response.
    """

    def __init__(
        self,
        answers: Answers,
        body: AsyncGenerator[str, None],
        *,
        filler: Callable[[], str],
        write_error: Callable[[ErrorBody], str],
        media_type: str,
    ) -> None:
        self._parts = _end_with_error(body, write_error)
        super().__init__(self._parts, media_type=media_type, headers=_HEADERS)
        self._answers = answers
        self._filler = filler
        self._write_error = write_error
        self._is_open = False
        self._sent_s = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop when the client disconnects."""
        with self._answers:
            try:
                async with aclosing(self._parts):
                    await super().__call__(scope, receive, send)
            except asyncio.CancelledError:  # the server shuts down while the engine hangs
                if self._is_open:
                    error = ShutdownError(
                        "the server shut down before the answer was complete; try another server"
                    )
                    await self._send_part(self._write_error(describe(error).body), send)
                    await self._send_end(send)
                raise

    async def stream_response(self, send: Send) -> None:
        """Send the head, the parts of the body as they come, and fillers in between."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        self._sent_s = time.monotonic()
        self._is_open = True
        filling = asyncio.ensure_future(self._fill(send))
        try:
            async for part in self._parts:
                await self._send_part(part, send)
        finally:
            filling.cancel()
            await asyncio.gather(filling, return_exceptions=True)
        await self._send_end(send)

    async def _fill(self, send: Send) -> None:
        """Send a filler whenever nothing was sent for a while; the parts of a busy answer cost nothing."""
        while True:
            left_s = self._sent_s + _QUIET_S - time.monotonic()
            if left_s > 0:
                await asyncio.sleep(left_s)
            else:
                await self._send_part(self._filler(), send)

    async def _send_end(self, send: Send) -> None:
        self._is_open = False
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_part(self, part: str, send: Send) -> None:
        self._sent_s = time.monotonic()
        await send({"type": "http.response.body", "body": part.encode(), "more_body": True})


async def _end_with_error(
    body: AsyncGenerator[str, None], write_error: Callable[[ErrorBody], str]
) -> AsyncGenerator[str, None]:
    """Yield what ``body`` does; an error becomes the last part."""
    async with aclosing(body):
        try:
            async for part in body:
                yield part
        except Exception as error:  # noqa: BLE001 - the boundary of requests: the status is sent already
            yield write_error(describe(error).body)
