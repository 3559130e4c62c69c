"""What ``baichuan2 serve`` refuses before it loads anything, and what it says of itself."""

import json
import logging
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

import pytest

from baichuan2_tpu.cli.serve_run import kv_bound, read_keys
from baichuan2_tpu.errors import RequestError
from baichuan2_tpu.memory import memory_need
from doubles.fakes import HistoryEngine
from running.cli_command import Run


@pytest.fixture(autouse=True)
def _logging_as_it_was(monkeypatch: pytest.MonkeyPatch) -> Generator[None, None, None]:
    monkeypatch.delenv("BAICHUAN2_API_KEY", raising=False)
    root, own = logging.getLogger(), logging.getLogger("baichuan2_tpu")
    before = [*root.handlers], root.level, own.level
    yield
    root.handlers[:], root.level, own.level = before


@pytest.fixture
def taken_port() -> Generator[int, None, None]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


def test_a_port_in_use_is_one_line(run: Run, taken_port: int) -> None:
    done = run("serve", "no-such-model", "--port", taken_port)
    assert (done.code, done.out) == (1, "")
    assert done.err == (
        f"error: cannot listen on 127.0.0.1:{taken_port}: Address already in use; choose another --port, or "
        "stop the program that uses it\n"
    )


@pytest.mark.parametrize("option", ["--max-body", "--grace", "--timeout", "--kv-memory", "--stored-memory"])
@pytest.mark.parametrize("value", ["inf", "nan", "-1"])
def test_a_limit_that_is_no_number_is_a_wrong_use(run: Run, option: str, value: str) -> None:
    done = run("serve", "no-such-model", "--port", 0, option, value)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: Invalid value for '{option}'")


def test_an_unknown_model_is_one_line(run: Run) -> None:
    done = run("serve", "no-such-model", "--port", 0)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1


def test_a_certificate_that_is_none_is_one_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "certificate.pem"
    file.write_text("nothing")
    done = run("serve", "no-such-model", "--port", 0, "--tls-certificate", file, "--tls-key", file)
    assert done.code == 1
    assert done.err.startswith(f"error: cannot use the certificate {file} with the key {file}: ")
    assert done.err.count("\n") == 1


def test_a_certificate_without_its_key_is_refused(run: Run, tmp_path: Path) -> None:
    done = run("serve", "no-such-model", "--port", 0, "--tls-certificate", tmp_path)
    assert done.err == (
        "error: TLS needs both a certificate and its key; give --tls-certificate and --tls-key\n"
    )


def test_a_missing_package_is_named_with_the_next_step() -> None:
    code = (
        "import sys; sys.modules['uvicorn'] = None; sys.argv = ['baichuan2', 'serve', 'demo']\n"
        "from baichuan2_tpu.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: serve needs uvicorn, which is not installed; run in the clone: pip install '.[server]'\n",
    )


def test_keys_come_from_the_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbfone\r\n\n two \n")  # as an editor on Windows writes it
    monkeypatch.setenv("BAICHUAN2_API_KEY", "three")
    assert read_keys(file) == {"one", "two", "three"}
    monkeypatch.delenv("BAICHUAN2_API_KEY")
    assert read_keys(None) == frozenset()


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xff"])
def test_a_file_without_a_key_does_not_open_the_server(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    with pytest.raises(RequestError, match="keys"):
        read_keys(file)


def test_a_missing_key_file_and_an_empty_variable_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RequestError, match="cannot read keys"):
        read_keys(tmp_path / "none")
    monkeypatch.setenv("BAICHUAN2_API_KEY", " ")
    with pytest.raises(RequestError, match="is empty"):
        read_keys(None)


def test_keys_and_values_get_what_the_weights_leave_of_half_the_machine() -> None:
    engine = HistoryEngine(300, max_context=64, max_sequences=4)
    need = memory_need(engine.config)
    context_bytes = 64 * need.kv_bytes_per_token
    assert kv_bound(engine, 10**12) == 4 * context_bytes
    assert kv_bound(engine, 2 * need.weight_bytes + 4 * context_bytes) == 2 * context_bytes
    assert kv_bound(engine, 0) == context_bytes


def serve_once(run: Run, model: Path, folder: Path, *options: object) -> tuple[list[str], bytes]:
    """Serve a model in this thread until another one has asked for the list of models and sends SIGTERM.

    Returns the lines of standard error and what was answered.
    """
    answers: list[bytes] = []
    trusted = (
        ssl.create_default_context(cafile=folder / "certificate.pem") if "--tls-key" in options else None
    )
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    scheme = "https" if trusted else "http"

    def ask(notified: socket.socket) -> None:
        notified.settimeout(60)
        assert notified.recv(100) == b"READY=1"
        try:
            url = f"{scheme}://127.0.0.1:{port}/v1/models"
            with urlopen(url, context=trusted, timeout=60) as answer:
                answers.append(answer.read())
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(os.environ["NOTIFY_SOCKET"])
        asking = Thread(target=ask, args=(notified,))
        asking.start()
        done = run("serve", model, "--port", port, "--threads", 1, *options)
        asking.join()
        assert notified.recv(100) == b"STOPPING=1"
    assert (done.code, done.out) == (0, "")
    return done.err.splitlines(), answers[0]


@pytest.fixture
def _supervised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))


@pytest.mark.usefixtures("_supervised")
def test_a_model_is_served_until_a_signal_comes(run: Run, model: Path, tmp_path: Path) -> None:
    lines, answer = serve_once(run, model, tmp_path, "--kv-memory", 0.01, "--host", "0.0.0.0")
    assert json.loads(answer)["data"][0]["id"] == "Tiny-Chat-w4"
    bounds, warning, ready, request, stopped = lines
    assert " event=bounds " in bounds
    assert " kv_gb=0.01 " in bounds
    assert "level=warning" in warning
    assert "host=0.0.0.0" in warning
    assert " event=ready model=Tiny-Chat-w4 engine=cpu url=http://0.0.0.0:" in ready
    assert " method=GET path=/v1/models status=200 whole=true " in request
    assert stopped.endswith(" event=stopped")


@pytest.mark.skipif(shutil.which("openssl") is None, reason="install openssl, which makes the certificate")
@pytest.mark.usefixtures("_supervised")
def test_it_is_served_by_tls_and_logged_as_json(run: Run, model: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(["openssl", *words.split(), *names], check=True, capture_output=True)
    options = ("--tls-certificate", certificate, "--tls-key", key, "--log", "json", "--name", "small")
    lines, answer = serve_once(run, model, tmp_path, *options)
    assert json.loads(answer)["data"][0]["id"] == "small"
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["bounds", "ready", "request", "stopped"]
    assert events[1]["url"].startswith("https://127.0.0.1:")


def test_help_of_serve_loads_no_server() -> None:
    code = (
        "import sys; sys.argv = ['baichuan2', 'serve', '--help']\n"
        "from baichuan2_tpu.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'fastapi', 'uvicorn', 'numpy'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
