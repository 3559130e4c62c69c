"""No page of another site can use the server, and no name but its own leads to it."""

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from baichuan2_tpu.server.transport import site_guard
from baichuan2_tpu.server.transport.site_guard import SiteGuard, own_names


def client(*names: str, origins: tuple[str, ...] = ()) -> TestClient:
    async def answer(_: Request) -> PlainTextResponse:
        return PlainTextResponse("answered")

    app = Starlette(routes=[Route("/", answer, methods=["GET", "POST"])])
    return TestClient(SiteGuard(app, names or own_names("127.0.0.1"), origins))


OWN_HOSTS = [
    "localhost",
    "LOCALHOST:8000",
    "127.0.0.1:8000",
    "[::1]:8000",
    "192.168.1.9",
    "localhost.:80",
    "chat",
    "chat.localhost:8000",
]
CONTAINER_HOSTS = ["host.docker.internal:8000", "host.containers.internal:8000", "gateway.docker.internal."]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "host.docker.internal.evil.example",
    "evilinternal.example",
    "localhost:80@evil.example",
    "localhost/evil",
    "localhost:x",
    "[::1",
]


@pytest.mark.parametrize("host", OWN_HOSTS)
def test_its_own_names_and_numeric_addresses_are_answered(host: str) -> None:
    assert client().get("/", headers={"host": host}).text == "answered"


@pytest.mark.parametrize("host", CONTAINER_HOSTS)
def test_containers_reach_it_under_the_name_of_their_host(host: str) -> None:
    """The guide told users of Docker to enter host.docker.internal, which was answered with 421."""
    assert client().get("/", headers={"host": host}).text == "answered"


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_foreign_name_is_refused_though_it_leads_here(host: str) -> None:
    """With DNS rebinding any web site that a user opened could read answers from 127.0.0.1."""
    response = client().post("/", headers={"host": host})
    assert response.status_code == 421
    assert response.json()["error"]["code"] == "unknown_host"


def test_a_name_that_is_allowed_is_answered() -> None:
    proxied = client("chat.example.com")
    assert proxied.get("/", headers={"host": "chat.example.com"}).is_success
    assert client("*").get("/", headers={"host": "any.example"}).is_success


FOREIGN_ORIGINS = ["https://evil.example", "null", "http://localhost:3000", "http://127.0.0.1", ""]


@pytest.mark.parametrize("origin", FOREIGN_ORIGINS)
def test_a_page_of_another_site_is_refused(origin: str) -> None:
    response = client().post("/", headers={"host": "127.0.0.1:8000", "origin": origin})
    assert response.status_code == 403
    assert response.json()["error"]["code"] == "unknown_origin"


@pytest.mark.parametrize("origin", ["http://192.168.1.9:8000", "https://192.168.1.9:8000"])
def test_its_own_page_is_answered_also_behind_a_proxy_that_ends_tls(origin: str) -> None:
    assert client().post("/", headers={"host": "192.168.1.9:8000", "origin": origin}).is_success


def test_a_page_of_an_allowed_site_is_answered() -> None:
    allowed = client(origins=("https://chat.example",))
    assert allowed.post("/", headers={"host": "localhost", "origin": "https://CHAT.example"}).is_success
    assert not allowed.post("/", headers={"host": "localhost", "origin": "https://other.example"}).is_success
    assert client(origins=("*",)).post("/", headers={"host": "localhost", "origin": "null"}).is_success


def test_a_server_answers_for_the_names_of_its_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_guard.socket, "gethostname", lambda: "Box.lan")
    assert own_names("0.0.0.0") == {"0.0.0.0", "box.lan", "box.local"}
    assert own_names("box.example") == {"box.example", "box.lan", "box.local"}
