"""The end of a server, by request and by force: what clients see, and what is left behind."""

import json
import signal
import socket
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import openai
import pytest
from openai import Stream
from openai.types import Completion

from baichuan2_tpu.quantize import quantize
from baichuan2_tpu.text.registry import open_tokenizer
from baichuan2_tpu.text.template import open_template
from models.tiny_checkpoint import rope_config, write_official
from models.tiny_tokenizer import write_sentencepiece
from running.server_process import ServerProcess

CONTEXT = 32_768
LONG = 3000
"""Tokens of an answer that takes a second or more."""
ENDLESS = CONTEXT - 100

CUT_OFF = (openai.APIError, httpx.HTTPError)
"""What OpenAI's client raises when an answer breaks off."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with room for long answers."""
    directory = tmp_path_factory.mktemp("models") / "Tiny"
    write_official(directory, rope_config(vocabulary_size=400, max_context=CONTEXT))
    write_sentencepiece(directory)
    quantize(directory, directory.with_name("Tiny-w4"), bits=4, method="search")
    return directory.with_name("Tiny-w4")


@pytest.fixture(scope="module")
def never_stop(model: Path) -> dict[str, int]:
    """A bias that keeps an answer from ending by itself."""
    tokenizer = open_tokenizer(model)
    stops = tokenizer.stop_ids | open_template(model, tokenizer).stop_ids
    return {str(token_id): -100 for token_id in stops}


def client_of(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


@pytest.fixture
def server(model: Path, tmp_path: Path) -> Generator[ServerProcess, None, None]:
    with ServerProcess(model, tmp_path / "home", "--threads", 1, "--no-page") as server:
        yield server


def begin(client: openai.OpenAI, tokens: int, never_stop: dict[str, int]) -> Stream[Completion]:
    """Ask for a long answer and wait until it grows."""
    stream = client.completions.create(
        model="Tiny-w4", prompt="hello", max_tokens=tokens, temperature=0, logit_bias=never_stop, stream=True
    )
    next(stream)
    return stream


def wait_until_closed(url: str) -> None:
    """Return when nobody can connect any more."""
    place = urlsplit(url)
    with suppress(ConnectionRefusedError, ConnectionResetError):  # reset: it closed while one connected
        while True:
            socket.create_connection((place.hostname or "", place.port or 0), timeout=60).close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_running_answer_finishes_behind_a_closed_port(
    server: ServerProcess, never_stop: dict[str, int], number: signal.Signals
) -> None:
    with client_of(server.url) as client, begin(client, LONG, never_stop) as stream:
        server.signal(number)
        wait_until_closed(server.url)
        *_, last = stream
        assert last.choices[0].finish_reason == "length"
    assert server.wait() == 0
    assert server.lines[-1].endswith(" event=stopped\n")


def test_an_answer_that_outlasts_the_grace_ends_with_an_error(
    model: Path, tmp_path: Path, never_stop: dict[str, int]
) -> None:
    with (
        ServerProcess(model, tmp_path, "--grace", 0.1, "--no-page") as server,
        client_of(server.url) as client,
        begin(client, ENDLESS, never_stop) as stream,
    ):
        server.signal(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="the server shut down before the answer was complete"):
            list(stream)
        assert server.wait() == 0


def test_a_client_that_never_reads_does_not_keep_the_server(
    model: Path, tmp_path: Path, never_stop: dict[str, int]
) -> None:
    body = {"model": "Tiny-w4", "prompt": "hello", "max_tokens": ENDLESS, "logit_bias": never_stop}
    content = json.dumps({**body, "stream": True}).encode()
    with ServerProcess(model, tmp_path, "--grace", 0.1, "--no-page") as server, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", urlsplit(server.url).port))
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(content)}\r\n"
        client.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + content)
        wait_until_running(server.url, 1)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def test_a_second_ctrl_c_ends_at_once(server: ServerProcess, never_stop: dict[str, int]) -> None:
    with client_of(server.url) as client, begin(client, ENDLESS, never_stop) as stream:
        server.signal(signal.SIGINT)
        wait_until_closed(server.url)
        server.signal(signal.SIGINT)
        assert server.wait() == 128 + signal.SIGINT
        with pytest.raises(CUT_OFF):
            list(stream)


def wait_until_running(url: str, answers: int) -> None:
    """Return when so many answers grow at once."""
    while f"baichuan2_requests_running {answers}.0" not in httpx.get(f"{url}/metrics", timeout=60).text:
        pass


def state_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_after_kill_9_nothing_is_left_and_the_next_start_is_clean(
    model: Path, tmp_path: Path, never_stop: dict[str, int]
) -> None:
    model_files = state_of(model)
    home = tmp_path / "home"
    with ServerProcess(model, home, "--no-page") as server, client_of(server.url) as client:

        def read_one() -> None:
            with begin(client, ENDLESS, never_stop) as stream:
                list(stream)

        def wait_for_one() -> None:
            client.completions.create(
                model="Tiny-w4", prompt="hello", max_tokens=ENDLESS, logit_bias=never_stop
            )

        with ThreadPoolExecutor(4) as pool, begin(client, ENDLESS, never_stop):
            answers = [pool.submit(ask) for ask in (read_one, read_one, wait_for_one, wait_for_one)]
            wait_until_running(server.url, 5)
            server.signal(signal.SIGKILL)
            assert server.wait() == -signal.SIGKILL
            assert all(isinstance(answer.exception(), CUT_OFF) for answer in answers)
    assert state_of(home) == {}
    assert state_of(model) == model_files
    port = urlsplit(server.url).port
    with ServerProcess(model, home, "--no-page", "--port", port) as again, client_of(again.url) as client:
        assert again.url == server.url
        answer = client.completions.create(model="Tiny-w4", prompt="hello", max_tokens=5)
        assert answer.usage is not None
        again.signal(signal.SIGTERM)
        assert again.wait() == 0


def test_nothing_is_printed_on_standard_output(server: ServerProcess) -> None:
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    output = server.process.stdout
    assert output is not None
    assert output.read() == ""
