"""HTTP as fetching needs it: a client, faults that may pass, waiting between attempts.

Whatever httpx raises is mapped here and nowhere else: to ``Fault`` where another attempt may succeed, to
``FetchError`` where it cannot. Not here: what a URL means (``hubs``), where bytes go (``download``).
Source: RFC 9110, section 10.2.3 for Retry-After; draft-ietf-httpapi-ratelimit-headers-09 for RateLimit, which
Hugging Face sends ('"api";r=0;t=55'); httpx 0.28 for its exceptions and what it reads of the
environment: HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE.
"""

from __future__ import annotations

import email.utils
import itertools
import os
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import httpx

from baichuan2_tpu import __version__
from baichuan2_tpu.errors import FetchError

__all__ = [
    "Fault",
    "Patience",
    "check_status",
    "gave_up",
    "keep_trying",
    "mapped_errors",
    "open_client",
    "read_limited",
]

_PASSING = frozenset({408, 425, 429})
_WINDOW = re.compile(r";\s*t=(\d+)")
_SIGNATURE_REFUSED = frozenset({401, 403})
_Value = TypeVar("_Value")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait for a server. Units: ``attempts`` counts those in a row that bring nothing new."""

    attempts: int = 8
    first_wait_s: float = 1.0
    longest_wait_s: float = 300.0  # the window in which Hugging Face counts requests
    """Longest wait between two attempts, whatever Retry-After says."""
    connect_timeout_s: float = 15.0
    read_timeout_s: float = 20.0
    """Longest time without a byte."""

    def wait_s(self, failures: int, asked_s: float | None) -> float:
        """Return how long to wait after so many failures in a row, or as long as the server asked for."""
        wait = self.first_wait_s * 2 ** (failures - 1) if asked_s is None else asked_s
        return max(0.0, min(wait, self.longest_wait_s))


class Fault(Exception):  # noqa: N818 - no error yet: another attempt may succeed
    """An attempt failed and another may succeed."""

    def __init__(self, reason: str, *, wait_s: float | None = None, is_suspect: bool = False) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        """What the server asked for."""
        self.is_suspect = is_suspect
        """Whether the bytes of this attempt cannot be trusted."""


def open_client(patience: Patience, connections: int) -> httpx.Client:
    """Return a client that follows redirects and takes proxies and certificates from the environment.

    A token is sent to the host it is for alone: httpx drops it where a redirect leads to another origin.
    Raises: FetchError for a proxy, or for a file of certificates, that cannot be used.
    """
    timeout = httpx.Timeout(patience.read_timeout_s, connect=patience.connect_timeout_s, pool=None)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=2 * connections)
    headers = {"User-Agent": f"baichuan2-tpu/{__version__}", "Accept-Encoding": "identity"}
    try:
        return httpx.Client(follow_redirects=True, timeout=timeout, limits=limits, headers=headers)
    except (ImportError, ValueError, httpx.InvalidURL) as error:
        raise FetchError(
            f"the proxy of HTTPS_PROXY or ALL_PROXY cannot be used ({error}); "
            'allowed are http:// and https:// proxies, and socks5:// after: pip install "httpx[socks]"'
        ) from error
    except OSError as error:
        named = os.environ.get("SSL_CERT_FILE")
        if not named:
            raise
        raise FetchError(
            f"SSL_CERT_FILE is {named!r}, where no certificates can be read ({error.strerror or error}); "
            "name a file of certificates in PEM form, or unset it"
        ) from error


@contextmanager
def mapped_errors(url: str) -> Generator[None, None, None]:
    """Turn what httpx raises into ``Fault`` or FetchError."""
    try:
        yield
    except (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError) as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise FetchError(
                f"{url}: the server's certificate is not trusted ({error}); behind a proxy with a "
                "certificate of its own, name its file in SSL_CERT_FILE"
            ) from error
        raise Fault(f"{type(error).__name__} {error}".strip()) from error
    except httpx.LocalProtocolError:
        # Its text quotes the header, and so a token or a proxy's password; a traceback would show it too.
        raise FetchError(
            f"{url}: cannot be requested: a header has characters that HTTP does not allow; check the tokens "
            "(HF_TOKEN, MODELSCOPE_API_TOKEN) and the user and password of HTTPS_PROXY"
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, httpx.CookieConflict) as error:
        raise FetchError(f"{url}: cannot be fetched ({type(error).__name__} {error})") from error


def check_status(response: httpx.Response, url: str, advice: Mapping[int, str]) -> None:
    """Check that a response brings what was asked for; ``advice`` says what to do about a status.

    Raises: Fault for a status that passes; FetchError for any other that is no success.
    """
    status = response.status_code
    if response.is_success:
        return
    # A refusal by another host is of the address that the hub has signed, which ends; the next one is new.
    is_stale = status in _SIGNATURE_REFUSED and _is_redirected_away(response)
    if status in _PASSING or status >= 500 or is_stale:
        raise Fault(f"status {status}", wait_s=_retry_after_s(response))
    reason = response.headers.get("X-Error-Message") or response.reason_phrase
    step = advice.get(status, "try again later, or from another --source")
    raise FetchError(f"{url}: status {status} ({reason}); {step}")


def keep_trying(
    attempt: Callable[[], _Value], patience: Patience, *, where: str, sleep: Callable[[float], object]
) -> _Value:
    """Return what ``attempt`` returns, called again after a ``Fault`` until patience ends.

    Raises: FetchError naming the last fault, or what ``attempt`` raises.
    """
    for failures in itertools.count(1):
        outcome = _outcome(attempt)
        if not isinstance(outcome, Fault):
            return outcome
        if failures >= patience.attempts:
            raise gave_up(where, failures, outcome) from outcome
        sleep(patience.wait_s(failures, outcome.wait_s))
    raise AssertionError("counting has no end")


def _outcome(attempt: Callable[[], _Value]) -> _Value | Fault:
    try:
        return attempt()
    except Fault as fault:
        return fault


def gave_up(where: str, failures: int, fault: Fault) -> FetchError:
    """Return the error that ends a row of faults."""
    return FetchError(
        f"{where}: failed {failures} times, at last with {fault}; what is there is kept: check the network "
        "(HTTPS_PROXY, HF_ENDPOINT) and run the same command again, or take another --source"
    )


def read_limited(response: httpx.Response, limit_bytes: int) -> bytes:
    """Return the body of a streamed response.

    Raises: FetchError when it is longer than ``limit_bytes``.
    """
    body = bytearray()
    for block in response.iter_bytes():
        body += block
        if len(body) > limit_bytes:
            raise FetchError(f"{response.url}: sends more than {limit_bytes} bytes; take another --source")
    return bytes(body)


def _is_redirected_away(response: httpx.Response) -> bool:
    return bool(response.history) and response.url.netloc != response.history[0].url.netloc


def _retry_after_s(response: httpx.Response) -> float | None:
    """Return the seconds that a server asks for: Retry-After, a number or a date, or the end of a window."""
    value = response.headers.get("Retry-After", "").strip()
    window = _WINDOW.search(response.headers.get("RateLimit", ""))
    if window and not value:
        value = window[1]
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        return email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
