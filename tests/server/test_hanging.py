"""A server ends within its grace period whatever hangs in it: the engine, a tokenizer, a schema, a client."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

import baichuan2_tpu

_SERVER = """
import sys, threading
from baichuan2_tpu.cli.serve_run import write_logs
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.transport.ending import Ending
from baichuan2_tpu.server.transport.listening import Address, bind, serve
from doubles.fakes import ByteTokenizer, HistoryEngine
from running.served import running_service

class HangingEngine(HistoryEngine):
    def forward(self, chunks):
        threading.Event().wait()

def hang(text):
    print("hangs", flush=True)
    threading.Event().wait()

write_logs("text", is_debug=False)
part, grace_s = sys.argv[1], float(sys.argv[2])
engine = HangingEngine if part == "engine" else HistoryEngine
address = Address(port=0)
with Ending(grace_s) as ending, bind(address) as listener:
    with running_service(engine(ByteTokenizer().vocabulary_size)) as service:
        service.warm_up()
        if part == "tokenizer":
            service.model.tokenizer.encode = hang
        serve(
            create_app(service), service, address, listener,
            ending=ending, when_ready=lambda: print(address.url(listener), flush=True),
        )
print("ended by itself", flush=True)
"""
_GRACE_S = 4
_ENDLESS = {"type": "integer", "multipleOf": 4999999}
_FORCED = 'event="ended although something still runs"'


@contextmanager
def server_with(
    part: str, grace_s: float = _GRACE_S
) -> Generator[tuple[subprocess.Popen[str], str], None, None]:
    """Start a server of which a part hangs, and yield it with its URL."""
    folders = (Path(baichuan2_tpu.__file__).parents[1], Path(__file__).parents[1])
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}\n{_SERVER}"
    with subprocess.Popen(
        [sys.executable, "-c", code, part, str(grace_s)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Ask a server to end and return its exit code and what it has printed since."""
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def ask(url: str, **fields: object) -> None:
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "a", **fields}, timeout=0.5)


def test_an_engine_that_hangs_does_not_keep_the_server() -> None:
    # SIGTERM did nothing for as long as a call of the engine hung, and later for 10 s more than was allowed.
    with server_with("engine") as (process, url):
        ask(url)
        code, out, err = end(process)
    assert (code, out) == (0, "")
    assert err.count(_FORCED) == 1
    assert "after_s=3.7" in err


@pytest.mark.parametrize("headers", [{}, {"X-Keep-Alive": "true"}], ids=["stream", "kept alive"])
def test_an_answer_that_hangs_behind_its_head_ends_with_an_error(headers: dict[str, str]) -> None:
    # The connection broke off in the middle of a chunk.
    body = {"model": "tiny", "prompt": "a", "stream": not headers}
    with (
        server_with("engine") as (process, url),
        httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as response,
    ):
        pieces = response.iter_text()
        beginning = next(pieces)
        code, _, _ = end(process)
        rest = beginning + "".join(pieces)
    assert code == 0
    last = rest.strip().splitlines()[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["code"] == "unavailable"


def test_a_tokenizer_that_hangs_does_not_keep_the_server() -> None:
    # The interpreter waited for the tokenizer's thread, when nobody watched it any more.
    with server_with("tokenizer") as (process, url):
        ask(url)
        code, out, err = end(process)
    assert (code, out) == (0, "hangs\n")
    assert err.count(_FORCED) == 1


def test_a_schema_that_hangs_does_not_keep_the_server() -> None:
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "a"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": _ENDLESS}},
    }
    with server_with("nothing") as (process, url), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(httpx.post, f"{url}/v1/chat/completions", json=body, timeout=60)
        time.sleep(0.5)  # by now it is compiled
        code, out, _ = end(process)
        answer = asking.result()
    assert (code, out) == (0, "ended by itself\n")
    assert answer.json()["error"]["code"] == "unavailable"


def test_a_body_that_never_comes_does_not_keep_the_server() -> None:
    with server_with("nothing") as (process, url), socket.socket() as client:
        place = urlsplit(url)
        client.connect((place.hostname or "", place.port or 0))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n"
        client.sendall(head + b"{")
        assert httpx.get(f"{url}/health/live").status_code == 200
        code, out, err = end(process)
        answer = client.recv(65536)
    assert (code, out) == (0, "ended by itself\n")
    assert _FORCED not in err
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["message"].startswith(
        "the server is shutting"
    )


def test_without_a_grace_period_there_is_a_second() -> None:
    with server_with("engine", 0) as (process, url):
        ask(url)
        code, out, err = end(process)
    assert (code, out) == (0, "")
    assert "after_s=0.8" in err
