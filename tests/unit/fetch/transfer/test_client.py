"""Whatever httpx raises becomes a fault that may pass or an error; waits follow the server, within bounds."""

import email.utils
import inspect
import time
import traceback
from pathlib import Path

import httpx
import pytest

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.transfer.client import (
    Fault,
    Patience,
    check_status,
    keep_trying,
    mapped_errors,
    open_client,
)

URL = "http://hub/file"


def exception_classes() -> list[type[Exception]]:
    found = [
        value for value in vars(httpx).values() if inspect.isclass(value) and issubclass(value, Exception)
    ]
    assert httpx.ReadTimeout in found
    return found


def make(kind: type[Exception]) -> Exception:
    request = httpx.Request("GET", URL)
    needed = inspect.signature(kind).parameters
    values = {"message": "broken", "request": request, "response": httpx.Response(500, request=request)}
    return kind(**{name: values[name] for name in needed if name in values})


@pytest.mark.parametrize("kind", exception_classes())
def test_every_exception_of_httpx_is_mapped(kind: type[Exception]) -> None:
    with pytest.raises((Fault, FetchError)) as caught, mapped_errors(URL):
        raise make(kind)
    is_secret = kind is httpx.LocalProtocolError
    assert caught.value.__suppress_context__
    assert isinstance(caught.value.__cause__, type(None) if is_secret else kind)
    passing = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
    assert isinstance(caught.value, Fault) == issubclass(kind, passing)


def test_header_that_cannot_be_sent_is_not_quoted() -> None:
    """httpx quotes it whole: a token was shown on the screen and in logs."""
    with pytest.raises(FetchError, match="check the tokens") as caught, mapped_errors(URL):
        raise httpx.LocalProtocolError("Illegal header value b'Bearer ms-SECRET\r'")
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_untrusted_certificate_is_no_passing_fault() -> None:
    with pytest.raises(FetchError, match="name its file in SSL_CERT_FILE"), mapped_errors(URL):
        raise httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")


def response(status: int, *, came_from: str = "", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items() if value}
    found = httpx.Response(status, headers=named, request=httpx.Request("GET", URL))
    found.history = [httpx.Response(302, request=httpx.Request("GET", came_from))] if came_from else []
    return found


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_status_that_passes_is_a_fault(status: int) -> None:
    with pytest.raises(Fault, match=f"status {status}"):
        check_status(response(status), URL, {})


def is_success(status: int) -> bool:
    try:
        check_status(response(status), URL, {})
    except (Fault, FetchError):
        return False
    return True


def test_success_alone_passes() -> None:
    assert [status for status in range(200, 600) if is_success(status)] == list(range(200, 300))


@pytest.mark.parametrize("status", [304, 400, 401, 403, 404, 410, 418])
def test_refusal_is_an_error_with_advice(status: int) -> None:
    with pytest.raises(FetchError, match=rf"http://hub/file: status {status} \(.*\); do this"):
        check_status(response(status), URL, {status: "do this"})


@pytest.mark.parametrize("status", [401, 403])
def test_refusal_of_a_signed_address_passes(status: int) -> None:
    with pytest.raises(Fault):
        check_status(response(status, came_from="http://other/file"), URL, {})
    with pytest.raises(FetchError, match="do this"):
        check_status(response(status, came_from="http://hub/old-name"), URL, {status: "do this"})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("1e9", None),
        ("Wed, 99 Oct 2037", None),
    ],
)
def test_wait_that_the_server_asks_for_is_read(value: str, seconds: float | None) -> None:
    with pytest.raises(Fault) as caught:
        check_status(response(429, Retry_After=value), URL, {})
    assert caught.value.wait_s == seconds


def test_wait_until_a_date_is_read() -> None:
    moment = time.time() + 1000
    with pytest.raises(Fault) as caught:
        check_status(response(429, Retry_After=email.utils.formatdate(moment, usegmt=True)), URL, {})
    assert caught.value.wait_s is not None
    assert 0 < caught.value.wait_s <= 1000


@pytest.mark.parametrize(
    ("limit", "after", "seconds"),
    [('"api";r=0;t=55', "", 55.0), ('"api";r=0; t=55', "7", 7.0), ('"api";r=0', "", None)],
)
def test_window_of_a_rate_limit_is_waited_for(limit: str, after: str, seconds: float | None) -> None:
    with pytest.raises(Fault) as caught:
        check_status(response(429, RateLimit=limit, Retry_After=after), URL, {})
    assert caught.value.wait_s == seconds


def test_waits_grow_and_stay_within_bounds() -> None:
    patience = Patience(first_wait_s=1.0, longest_wait_s=10.0)
    assert [patience.wait_s(failures, None) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert [patience.wait_s(1, asked) for asked in (3.0, 3600.0, -5.0)] == [3.0, 10.0, 0.0]


def test_attempts_end_and_name_the_last_fault() -> None:
    waits: list[float] = []

    def attempt() -> None:
        raise Fault("no answer", wait_s=2.0)

    with pytest.raises(
        FetchError, match="hub: failed 3 times, at last with no answer; what is there is kept"
    ):
        keep_trying(attempt, Patience(attempts=3), where="hub", sleep=waits.append)
    assert waits == [2.0, 2.0]


@pytest.mark.parametrize("proxy", ["ftp://proxy:1", "nonsense://", "http://[::1"])
def test_proxy_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(FetchError, match="the proxy of HTTPS_PROXY or ALL_PROXY cannot be used"):
        open_client(Patience(), 1)


@pytest.mark.parametrize("name", ["missing.pem", "empty.pem"])
def test_certificates_that_cannot_be_read_name_the_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    """The whole message was "No such file or directory", without a name."""
    (tmp_path / "empty.pem").touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
    with pytest.raises(
        FetchError,
        match=f"SSL_CERT_FILE is '{tmp_path / name}', where no cert.*; name a file of certificates",
    ):
        open_client(Patience(), 1)


def test_fault_of_the_package_with_the_certificates_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "cacert.pem")

    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setattr("httpx.Client", fail)
    with pytest.raises(FileNotFoundError, match=r"cacert\.pem"):
        open_client(Patience(), 1)


def test_socks_proxy_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("httpx.Client", _without_socks)
    with pytest.raises(FetchError, match=r'pip install "httpx\[socks\]"'):
        open_client(Patience(), 1)


def _without_socks(**_: object) -> None:
    raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")
