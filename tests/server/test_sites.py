"""A web site that a user opens reaches neither the API nor the page of a server as a user starts it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from running.server_process import ServerProcess

PATHS = ["/v1/chat/completions", "/v1/models", "/health", "/", "/gradio_api/queue/join", "/login"]


@pytest.fixture(scope="module")
def server(model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    options = ("--allowed-host", "chat.example.org", "--cors-origin", "https://friend.example")
    with ServerProcess(model_directory, folder, *options) as server:
        yield server


@pytest.mark.parametrize("path", PATHS)
def test_a_page_of_another_site_reads_nothing(server: ServerProcess, path: str) -> None:
    """Gradio answered CORS with credentials for every host but localhost."""
    for method in ("GET", "POST", "OPTIONS"):
        headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        response = httpx.request(method, f"{server.url}{path}", headers=headers)
        assert response.status_code in (400, 403)  # 400: a preflight that is refused
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("path", PATHS)
def test_a_name_that_a_stranger_points_here_is_not_answered(server: ServerProcess, path: str) -> None:
    for host in ("evil.example", "evil.example:8000"):
        response = httpx.post(f"{server.url}{path}", headers={"Host": host, "Origin": f"http://{host}"})
        assert response.status_code == 421


def test_what_is_allowed_is_answered(server: ServerProcess) -> None:
    models = f"{server.url}/v1/models"
    assert httpx.get(models, headers={"Host": "chat.example.org"}).is_success
    answered = httpx.get(models, headers={"Origin": "https://friend.example"})
    assert answered.headers["access-control-allow-origin"] == "https://friend.example"
    own = server.url
    assert httpx.get(models, headers={"Origin": own}).is_success
