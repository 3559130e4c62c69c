import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from baichuan2_tpu.server.page.access import PageAccess
from baichuan2_tpu.server.transport import guards

KEY = "open-sesame"


def client(*keys: str, url: str = "http://testserver") -> TestClient:
    door = PageAccess(PlainTextResponse("api"), PlainTextResponse("page"), keys)
    return TestClient(door, base_url=url, follow_redirects=False)


def sign_in(**settings: str) -> TestClient:
    browser = client(KEY, **settings)
    assert browser.post("/sign-in", data={"key": KEY}).status_code == 303
    return browser


@pytest.mark.parametrize(
    "path", ["/", "/config", "/assets/index.js", "/gradio_api/queue/data?session_hash=a"]
)
def test_the_page_gets_its_own_paths(path: str) -> None:
    assert client().get(path).text == "page"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models",
        "/nothing",
        "/monitoring",
        "/assets",
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/proxy=http://example.com",
        "/gradio_api/vibe-edit",
    ],
)
def test_nothing_else_of_gradio_can_be_reached(path: str) -> None:
    assert client().get(path).text == "api"


def test_the_browser_is_held_to_this_server_on_the_page_alone() -> None:
    policy = client().get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "http" not in policy
    assert "content-security-policy" not in client().get("/v1/models").headers


def test_without_the_key_there_is_a_form_and_nothing_else() -> None:
    page = client(KEY)
    assert page.get("/").status_code == 401
    assert 'type="password"' in page.get("/").text
    refusal = page.post("/gradio_api/queue/join", json={})
    assert refusal.status_code == 401
    assert refusal.json()["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize("key", ["", "open", "OPEN-SESAME", "open-sesame ", "ключ"])
def test_a_wrong_key_is_refused(key: str) -> None:
    page = client(KEY)
    refusal = page.post("/sign-in", data={"key": key})
    assert refusal.status_code == 401
    assert "The API key is incorrect." in refusal.text
    assert "set-cookie" not in refusal.headers
    assert page.get("/").status_code == 401


def test_the_right_key_opens_the_page_and_is_not_kept_by_the_browser() -> None:
    page = client(KEY, "another")
    answer = page.post("/sign-in", data={"key": KEY})
    assert answer.headers["location"] == "/"
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "sesame" not in cookie
    assert page.get("/").text == "page"


def test_a_cookie_of_a_key_that_is_no_longer_one_is_refused() -> None:
    cookies = dict(sign_in().cookies)
    later = client("a new key")
    later.cookies.update(cookies)
    assert later.get("/").status_code == 401


@pytest.mark.parametrize(("scheme", "is_secure"), [("http", False), ("https", True)])
def test_the_cookie_goes_over_tls_only_where_it_came_over_tls(scheme: str, is_secure: bool) -> None:
    page = client(KEY, url=f"{scheme}://testserver")
    cookie = page.post("/sign-in", data={"key": KEY}).headers["set-cookie"]
    assert ("Secure" in cookie) is is_secure


def test_without_keys_signing_in_just_opens_the_page() -> None:
    assert client().post("/sign-in", data={"key": "any"}).headers["location"] == "/"
    assert client(KEY).get("/sign-in").headers["location"] == "/"


def test_a_page_of_another_site_cannot_ask() -> None:
    refusal = sign_in().post("/gradio_api/queue/join", json={}, headers={"Sec-Fetch-Site": "cross-site"})
    assert refusal.status_code == 403
    assert sign_in().post("/gradio_api/queue/join", headers={"Sec-Fetch-Site": "same-origin"}).text == "page"


def test_the_form_speaks_the_browsers_language() -> None:
    html = client(KEY).get("/", headers={"Accept-Language": "zh-CN,zh;q=0.9,en;q=0.8"}).text
    assert '<html lang="zh">' in html
    assert "登录" in html


def test_a_page_that_listens_when_the_server_ends_is_told_and_no_fault() -> None:
    async def listen(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.Event().wait()

    sent = asyncio.run(sent_until_the_end(listen, messages=1))
    assert sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}


def test_a_page_that_was_told_all_is_told_no_more_when_the_server_ends() -> None:
    async def answer_and_stay(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("all")(scope, receive, send)
        await asyncio.Event().wait()

    sent = asyncio.run(sent_until_the_end(answer_and_stay, messages=2))
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]


async def sent_until_the_end(page: ASGIApp, messages: int) -> list[Message]:
    """End the server once a page has sent so many messages, and return all that were sent."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def never() -> Message:
        raise AssertionError

    scope = {"type": "http", "method": "GET", "path": "/gradio_api/heartbeat/a", "headers": []}
    staying = asyncio.ensure_future(PageAccess(PlainTextResponse("api"), page, ())(scope, never, send))
    while len(sent) < messages:
        await asyncio.sleep(0)
    staying.cancel()
    await staying
    return sent


@pytest.mark.parametrize(("form", "status"), [("key=" + "a" * 2**16, 413), ("a=1&b=2&c=3", 401)])
def test_a_form_that_is_none_has_no_key(form: str, status: int) -> None:
    # It was a traceback in the log.
    answer = client(KEY).post(
        "/sign-in", content=form, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert answer.status_code == status


def test_a_form_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "_BODY_S", 0.1)
    assert asyncio.run(sent_by_the_door(asyncio.Event().wait))[0]["status"] == 408


def test_a_client_that_leaves_at_the_form_is_no_fault() -> None:
    async def gone() -> Message:
        return {"type": "http.disconnect"}

    assert asyncio.run(sent_by_the_door(gone)) == []


async def sent_by_the_door(receive: Callable[[], Awaitable[Any]]) -> list[Message]:
    """Post to the form and return what is answered."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    kind = (b"content-type", b"application/x-www-form-urlencoded")
    scope = {"type": "http", "method": "POST", "path": "/sign-in", "headers": [kind]}
    door = PageAccess(PlainTextResponse("api"), PlainTextResponse("page"), (KEY,))
    await door(scope, receive, send)
    return sent


@pytest.mark.parametrize("charset", ["utf-7", "raw_unicode_escape", "undefined", "nothing"])
def test_a_key_in_an_encoding_that_is_none_is_wrong(charset: str) -> None:
    # It was a traceback in the log, for anyone.
    form = b'--B\r\nContent-Disposition: form-data; name="key"\r\n\r\n\\ud800+2AA-x\r\n--B--\r\n'
    kind = f"multipart/form-data; boundary=B; charset={charset}"
    assert client(KEY).post("/sign-in", content=form, headers={"Content-Type": kind}).status_code == 401
