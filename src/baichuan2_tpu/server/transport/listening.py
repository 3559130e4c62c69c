"""Listening: an address, TLS, signals, and a shutdown that lets answers finish.

The first SIGINT or SIGTERM closes the port and gives running answers a grace period, in which the process
ends whatever hangs in it (``ending``); a second signal ends it at once. Neither leaves anything behind: a
server writes no files.
Not here: the app (``server.app``), one connection (``connection``), limits of a body (``guards``), what a
user may set (``cli.serve``).
Source: uvicorn 0.54's ``Server``, whose hooks ``startup``, ``main_loop``, ``shutdown`` and ``handle_exit``
are used; sd_notify(3) for ``tell_supervisor``.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import cast

import uvicorn
from starlette.types import ASGIApp

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.server.service import Service
from baichuan2_tpu.server.transport.connection import Connection
from baichuan2_tpu.server.transport.ending import Ending

__all__ = ["Address", "bind", "check_tls", "is_loopback", "serve", "tell_supervisor"]

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
    ending: Ending,
    when_ready: Callable[[], None],
) -> None:
    """Serve until a signal arrives and running answers are over; in the main thread.

    Side effect: the service is stopped. A second signal ends the process with 128 + its number; ``ending``
    ends it in its time with exit code 0, whatever still runs in it.
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
    )
    _Server(config, service, ending, when_ready).run([listener])


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
        self, config: uvicorn.Config, service: Service, ending: Ending, when_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._service = service
        self._ending = ending
        self._when_ready = when_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signalled = asyncio.Event()

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
        times = self._ending
        closing = asyncio.create_task(super().shutdown(sockets))
        stop = asyncio.to_thread(self._service.stop, times.left_s(times.answers_s))
        answering = asyncio.create_task(stop)
        await asyncio.wait([answering], timeout=times.left_s(times.connections_s))
        await asyncio.wait([closing], timeout=times.left_s(times.connections_s))
        for task in self.server_state.tasks:
            task.cancel()
        await asyncio.wait([closing], timeout=times.left_s(times.force_s) / 2)
        for connection in list(self.server_state.connections):  # of clients that do not read
            cast("Connection", connection).transport.abort()
        await closing
        await answering

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn calls it
        """Begin to shut down; exit at once the second time."""
        if self.should_exit:
            os._exit(128 + sig)
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._signalled.set)
        self._ending.begin()
