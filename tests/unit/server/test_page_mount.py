"""The page and the API in one app; what a browser makes of it is tested in tests/browser."""

import pytest
from starlette.testclient import TestClient

from baichuan2_tpu.server.app import ServerOptions, create_app
from baichuan2_tpu.server.page.gradio_app import add_page
from doubles.talking_engine import TalkingEngine
from running.served import running_service


@pytest.fixture
def client() -> TestClient:
    with running_service(TalkingEngine()) as service:
        options = ServerOptions(max_body_bytes=1000)
        app = create_app(service, options)
        add_page(app, service, options)
        return TestClient(app)


def test_the_page_is_at_the_root_and_the_api_below_v1(client: TestClient) -> None:
    assert "gradio-app" in client.get("/").text
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_paths_of_nobody_are_the_apis_to_refuse(client: TestClient) -> None:
    for path in ("/v1/nothing", "/gradio_api/upload", "/monitoring"):
        refusal = client.get(path)
        assert refusal.status_code == 404
        assert refusal.json()["error"]["type"] == "invalid_request_error"


def test_gradio_is_told_to_count_nobody(client: TestClient) -> None:
    config = client.get("/config").json()
    assert config["analytics_enabled"] is False
    assert config["stylesheets"] == []


def test_a_request_that_is_too_large_is_refused_on_the_page_too(client: TestClient) -> None:
    assert client.post("/gradio_api/queue/join", content=b"x" * 1001).status_code == 413
