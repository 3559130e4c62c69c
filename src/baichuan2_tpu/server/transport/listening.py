"""Listening: an address, TLS, signals, and a shutdown that lets answers finish.

The first SIGINT or SIGTERM closes the port and gives running answers a grace period. If the process still
runs some seconds after that, whatever hangs in it, it is ended with the same exit code 0; a second signal
ends it at once. Neither leaves anything behind: a server writes no files.
Not here: the app (``server.app``), one connection (``connection``), limits of a body (``guards``), what a
user may set (``cli.serve``).
Source: uvicorn 0.54's ``Server``, whose hooks ``startup``, ``main_loop``, ``shutdown`` and ``handle_exit``
are used; sd_notify(3) for ``tell_supervisor``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.server.log_lines import log_event
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.server.transport.connection import Connection

__all__ = ["Address", "bind", "check_tls", "is_loopback", "serve", "tell_supervisor"]

_log = logging.getLogger(__name__)

_READING_S = 5
"""Time for clients to read the end of their answers, and again for the process to end by itself."""
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen; with TLS if there are a certificate and its key. Port 0 takes any free port."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: Path | None = None
    key: Path | None = None

    def url(self, listener: socket.socket) -> str:
        """Return the URL for a browser on this machine."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.certificate else 'http'}://{host}:{listener.getsockname()[1]}"


def bind(address: Address) -> socket.socket:
    """Bind a port; clients can connect from ``serve`` on.

    Raises: RequestError when the host is unknown, or the port is in use or not allowed.
    """
    try:
        addresses = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        # "localhost" is both ::1 and 127.0.0.1; clients that try only one try the latter.
        family, *_, name = min(addresses, key=lambda info: info[0] != socket.AF_INET)
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise RequestError(
            f"cannot listen on host {address.host!r}: {error.strerror}; give an address of this machine"
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(name)
    except OSError as error:
        listener.close()
        raise _cannot_listen(address, error) from error
    return listener


def _cannot_listen(address: Address, error: OSError) -> RequestError:
    return RequestError(
        f"cannot listen on {address.host}:{address.port}: {error.strerror}; "
        "choose another --port, or stop the program that uses it"
    )


def check_tls(address: Address) -> None:
    """Check that the certificate and its key can be used, if any are given.

    Raises: RequestError naming the files.
    """
    if address.certificate is None and address.key is None:
        return
    if address.certificate is None or address.key is None:
        raise RequestError("TLS needs both a certificate and its key; give --tls-certificate and --tls-key")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(address.certificate, address.key, password="")
    except (OSError, ValueError) as error:
        raise RequestError(
            f"cannot use the certificate {address.certificate} with the key {address.key}: "
            f"{error}; give two PEM files, the key without a password"
        ) from error


def is_loopback(host: str) -> bool:
    """Tell whether only this machine can reach a host name or address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return host.lower() == "localhost"


def serve(
    app: ASGIApp,
    service: Service,
    address: Address,
    listener: socket.socket,
    *,
    grace_s: float,
    when_ready: Callable[[], None],
) -> None:
    """Serve until a signal arrives and running answers are over; in the main thread.

    Side effect: the service is stopped. A second signal ends the process with 128 + its number; 10 s after
    the grace period it is ended with exit code 0, whatever still runs in it.
    Units: running answers have ``grace_s`` to finish; those that do not end with an error.
    Raises: RequestError when another server took the port since ``bind``.
    """
    try:
        listener.listen(_BACKLOG)  # two processes can bind a port; only one can listen
    except OSError as error:
        raise _cannot_listen(address, error) from error
    config = uvicorn.Config(
        app,
        http=Connection,
        ssl_certfile=address.certificate,
        ssl_keyfile=address.key,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        ws="none",
        timeout_graceful_shutdown=math.ceil(grace_s) + 2 * _READING_S,
    )
    server = _Server(config, service, grace_s, when_ready)
    try:
        server.run([listener])
    finally:
        server.is_over.set()


def tell_supervisor(state: str) -> None:
    """Tell systemd a state ("READY=1") if it started this process.

    Side effect: one datagram to the socket that ``NOTIFY_SOCKET`` names.
    """
    name = os.environ.get("NOTIFY_SOCKET")
    if not name:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
        # A name that begins with @ is in Linux's abstract namespace.
        notifier.sendto(state.encode(), "\0" + name[1:] if name.startswith("@") else name)


class _Server(uvicorn.Server):
    """uvicorn, with a shutdown that waits for running answers, and asleep until then."""

    def __init__(
        self, config: uvicorn.Config, service: Service, grace_s: float, when_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._grace_s = grace_s
        self._when_ready = when_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signalled = asyncio.Event()
        self.is_over = Event()
        """Set when nothing is left to wait for, and the process need not be ended."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._when_ready()

    async def main_loop(self) -> None:
        """Sleep until a signal comes: uvicorn's own loop wakes up ten times per second to look for one.

        It also keeps the date of responses, which ``Connection`` does.
        """
        while not self.should_exit:
            await self._signalled.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let the scheduler finish its answers while uvicorn waits for their connections.

        Connections still open after that carry no answer: a page listens for events as long as it is open.
        """
        tell_supervisor("STOPPING=1")
        ending = asyncio.create_task(super().shutdown(sockets))
        await asyncio.to_thread(self._service.stop, self._grace_s)
        await asyncio.wait([ending], timeout=_READING_S)
        for task in self.server_state.tasks:
            task.cancel()
        await ending

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn calls it
        """Begin to shut down; exit at once the second time."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._signalled.set)
        end_s = self._grace_s + 2 * _READING_S
        Thread(target=_end_process, args=(self.is_over, end_s), name="end", daemon=True).start()


def _end_process(is_over: Event, after_s: float) -> None:
    """End the process after a time, unless it is over, without waiting for any thread of it."""
    if is_over.wait(after_s):
        return
    fields = {"after_s": round(after_s, 1)}
    # In a thread of its own: what hangs may hold the lock of the log.
    ending = Thread(
        target=log_event,
        args=(_log, "ended although something still runs"),
        kwargs={"level": logging.WARNING, **fields},
        daemon=True,
    )
    ending.start()
    ending.join(1)
    os._exit(0)
