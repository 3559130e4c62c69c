"""A server that nobody asks for anything sleeps."""

import re
import time
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx2
import pytest

from running.server_process import ServerProcess

_IDLE_S = 4


def wake_ups(pid: int) -> int:
    """Return how often the main thread of a process, which has the event loop, has slept."""
    status = Path(f"/proc/{pid}/task/{pid}/status").read_text()
    (count,) = re.findall(r"^voluntary_ctxt_switches:\s*(\d+)$", status, re.MULTILINE)
    return int(count)


@pytest.mark.parametrize(("options", "most_per_s"), [(["--no-page"], 0.5), ([], 3)])
def test_an_idle_server_hardly_wakes_up(
    model_directory: Path, tmp_path: Path, options: list[str], most_per_s: float
) -> None:
    # It was 10 times per second, and more than 500 times with the page, which took 4 % of a core.
    with ServerProcess(model_directory, tmp_path, "--threads", 1, *options) as server:
        time.sleep(1)
        before = wake_ups(server.process.pid)
        time.sleep(_IDLE_S)
        assert wake_ups(server.process.pid) - before <= most_per_s * _IDLE_S
        asked_s = time.time()
        date = httpx2.get(f"{server.url}/health/live").headers["date"]
        assert parsedate_to_datetime(date).timestamp() >= asked_s - 1, "a server that sleeps knows the time"
