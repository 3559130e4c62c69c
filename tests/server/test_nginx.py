"""A prompt that is read for longer than a proxy waits for a sign of life, behind Debian's nginx.

Needs nginx, which Debian has as ``nginx``; not to have it is a failure where BAICHUAN2_TEST_NGINX is 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray

from baichuan2_tpu.engine.base import Chunk
from baichuan2_tpu.server.app import create_app
from doubles.fakes import ByteTokenizer, ScriptedEngine
from running.served import MODEL, listening, running_service

_PROMPT_TOKENS = 6000
_READING_S = 12
"""What reading the prompt takes: more than the 10 s that the proxy waits."""
_ANSWER = "It is a long text."
_CONFIGURATION = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    server {{
        listen unix:{folder}/nginx.sock;
        proxy_http_version 1.1;
        proxy_read_timeout 10s;
        {locations}
    }}
}}
"""


class SlowReader(ScriptedEngine):
    """Takes its time for prompts, and says the answer."""

    def __init__(self) -> None:
        tokenizer = ByteTokenizer()
        super().__init__(tokenizer.vocabulary_size, max_context=8192)
        self.enqueue_ids([*tokenizer.encode(_ANSWER), tokenizer.END_ID])

    def forward(self, chunks: Sequence[Chunk]) -> list[NDArray[np.float32]]:
        read_tokens = sum(len(chunk.tokens) for chunk in chunks if len(chunk.tokens) > 1)
        time.sleep(read_tokens * _READING_S / _PROMPT_TOKENS)
        return super().forward(chunks)


@contextmanager
def nginx(folder: Path, upstreams: Sequence[str]) -> Generator[str, None, None]:
    """Run nginx in front of some servers, each below its number, and yield its socket."""
    program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if program is None:
        assert os.environ.get("BAICHUAN2_TEST_NGINX") != "1", "nginx is not installed"
        pytest.skip("run: apt-get install nginx")
    locations = "\n".join(
        f"location /{number}/ {{ proxy_pass {url}/; }}" for number, url in enumerate(upstreams)
    )
    configuration = folder / "nginx.conf"
    configuration.write_text(_CONFIGURATION.format(folder=folder, locations=locations))
    words = [program, "-p", str(folder), "-e", "stderr", "-c", str(configuration)]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as process:
        try:
            while not (folder / "nginx.sock").exists():
                assert process.poll() is None, "nginx did not start"
                time.sleep(0.01)
            yield str(folder / "nginx.sock")
        finally:
            process.terminate()


def ask(place: str, number: int, asked: dict[str, object], headers: dict[str, str]) -> httpx2.Response:
    body = {"model": MODEL, "prompt": "a" * _PROMPT_TOKENS, "max_tokens": 100} | asked
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=place), timeout=60) as client:
        return client.post(f"http://localhost/{number}/v1/completions", json=body, headers=headers)


def test_a_long_prompt_is_answered_through_a_proxy_that_waits_ten_seconds(tmp_path: Path) -> None:
    # A stream's head came with its first token, so that the proxy answered 504 in its place.
    cases: list[tuple[dict[str, object], dict[str, str]]] = [
        ({"stream": True}, {}),
        ({}, {"X-Keep-Alive": "true"}),
        ({}, {}),
    ]
    with ExitStack() as stack:
        services = [stack.enter_context(running_service(SlowReader())) for _ in cases]
        urls = [stack.enter_context(listening(create_app(service))) for service in services]
        place = stack.enter_context(nginx(tmp_path, urls))
        threads = stack.enter_context(ThreadPoolExecutor())
        asking = [threads.submit(ask, place, number, *case) for number, case in enumerate(cases)]
        stream, kept_alive, silent = [future.result() for future in asking]
    *comments, _ = stream.text.partition("data: ")[0].split("\n\n")
    assert len(comments) >= 3
    assert all(comment.startswith(": reading ") for comment in comments)
    assert all(f'"text":"{letter}"' in stream.text for letter in _ANSWER)
    assert stream.text.endswith("data: [DONE]\n\n")
    assert kept_alive.text.startswith("\n\n\n")
    (choice,) = kept_alive.json()["choices"]
    assert (choice["text"], choice["finish_reason"]) == (_ANSWER, "stop")
    assert silent.status_code == 504  # the proxy's own: without a sign of life it gave up
