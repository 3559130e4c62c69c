"""Where a server listens, and what it tells its supervisor."""

import socket
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.server.transport.ending import Ending
from baichuan2_tpu.server.transport.listening import Address, bind, is_loopback, serve, tell_supervisor
from doubles.talking_engine import TalkingEngine
from running.served import running_service


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")])
def test_a_free_port_is_in_the_url(host: str, shown: str) -> None:
    address = Address(host, 0)
    with bind(address) as listener:
        assert listener.family == socket.AF_INET
        port = listener.getsockname()[1]
        assert port > 0
        assert address.url(listener) == f"http://{shown}:{port}"
        assert Address("::1", 0, Path("c"), Path("k")).url(listener) == f"https://[::1]:{port}"


def test_nobody_can_connect_while_the_model_is_loaded() -> None:
    with bind(Address(port=0)) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname(), timeout=5)


@pytest.mark.parametrize("host", ["no host", "256.1.1.1.1"])
def test_an_unknown_host_is_refused(host: str) -> None:
    with pytest.raises(RequestError, match=f"cannot listen on host '{host}'"):
        bind(Address(host))


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(RequestError, match=r"cannot listen on 192\.0\.2\.1:8000"):
        bind(Address("192.0.2.1"))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_is_known(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", "127.example.org"])
def test_other_machines_reach_the_rest(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("form", ["path", "abstract"])
def test_the_supervisor_gets_a_datagram(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(name if form == "path" else f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", name if form == "path" else f"@{name}")
        tell_supervisor("READY=1")
        assert notified.recv(100) == b"READY=1"


def test_without_a_supervisor_nothing_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.setattr(socket, "socket", lambda *kind: opened.append(kind))
    tell_supervisor("READY=1")
    assert opened == []


def test_of_two_that_took_a_port_the_second_to_listen_is_told_in_a_line() -> None:
    with bind(Address(port=0)) as first:
        address = Address(port=first.getsockname()[1])
        with bind(address) as second, running_service(TalkingEngine()) as service:
            first.listen()
            with pytest.raises(RequestError, match="choose another --port"):
                serve(never, service, address, second, ending=Ending(0), when_ready=lambda: None)


async def never(_scope: Scope, _receive: Receive, _send: Send) -> None:
    """Fail, as nothing is served."""
    raise AssertionError
