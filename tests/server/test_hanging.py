"""A server whose engine hangs ends in time all the same."""

import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import baichuan2_tpu

_SERVER = """
import threading
from baichuan2_tpu.server.app import create_app
from baichuan2_tpu.server.transport import listening
from baichuan2_tpu.server.transport.listening import Address, bind, serve
from doubles.fakes import ByteTokenizer, HistoryEngine
from running.served import running_service

class HangingEngine(HistoryEngine):
    def forward(self, chunks):
        threading.Event().wait()

listening._READING_S = 0.5
address = Address(port=0)
with running_service(HangingEngine(ByteTokenizer().vocabulary_size)) as service, bind(address) as listener:
    serve(
        create_app(service), service, address, listener,
        grace_s=0.2, when_ready=lambda: print(address.url(listener), flush=True),
    )
print("ended by itself", flush=True)
"""


@pytest.fixture
def hanging() -> subprocess.Popen[str]:
    folders = (Path(baichuan2_tpu.__file__).parents[1], Path(__file__).parents[1])
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}\n{_SERVER}"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_an_engine_that_hangs_does_not_keep_the_server(hanging: subprocess.Popen[str]) -> None:
    # SIGTERM did nothing for as long as a call of the engine hung.
    with hanging:
        assert hanging.stdout is not None
        url = hanging.stdout.readline().strip()
        try:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "a"}, timeout=0.5)
            hanging.send_signal(signal.SIGTERM)
            assert hanging.wait(120) == 0
            assert hanging.stdout.read() == ""
        finally:
            hanging.kill()
