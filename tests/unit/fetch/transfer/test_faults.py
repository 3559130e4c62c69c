"""The fault matrix: whatever a server does, a file is right or not there, and what is right is kept.

A fault that passes is got over; one that stays ends in an error and leaves nothing that looks like a model.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from baichuan2_tpu.errors import FetchError
from baichuan2_tpu.fetch.models import FetchSettings, fetch_model
from baichuan2_tpu.fetch.record import WORK_NAME
from baichuan2_tpu.fetch.transfer.hubs import RemoteFile
from baichuan2_tpu.fetch.transfer.part_file import PartFile, Piece
from baichuan2_tpu.files import Digest
from doubles.fault_server import COMMIT, MODEL, PIECE_BYTES, WEIGHTS, FaultyHub

PASSING = [
    "drop",
    "drop at once",
    "reset",
    "stall",
    "stall at once",
    "too few",
    "too many",
    "shifted range",
    "no range given",
    "garbled range",
    "truncated file",
    "flip",
    "wrong bytes",
    "whole of another size",
    "ignore range",
    "ignore range and drop",
    "403",
    "429",
    "429 7",
    "500",
    "502",
    "503",
    "503 Wed, 21 Oct 2037 07:28:00 GMT",
]
"""Faults of the server behind the redirect that another attempt gets over."""

STAYING = {
    "drop at once": "failed 4 times, at last with RemoteProtocolError",
    "too few": "failed 4 times, at last with an answer 1 bytes too short",
    "too many": "failed 4 times, at last with more bytes than were asked for",
    "shifted range": "failed 4 times, at last with another range than bytes",
    "no range given": "another range than bytes .*: nothing",
    "garbled range": "another range than bytes .*: bytes all of it",
    "truncated file": "it has 40998 bytes, listed are 81997, 2 times; nothing of it is kept",
    "flip": "the file has sha256 [0-9a-f]{64}, sha256 [0-9a-f]{64} is listed, 2 times",
    "wrong bytes": "the file has sha256 [0-9a-f]{64}, sha256 [0-9a-f]{64} is listed, 2 times",
    "whole of another size": "it has 81996 bytes, listed are 81997, 2 times",
    "ignore range and drop": "failed 4 times, at last with",
    "encoded": "arrives in an encoding that was not requested",
    "401": "failed 4 times, at last with status 401",
    "403": "failed 4 times, at last with status 403",
    "404": r"status 404 \(Not Found\); see .* for the revisions and files there are",
    "416": "it is shorter than the 81997 bytes that are listed, 2 times",
    "429 1": "failed 4 times, at last with status 429",
    "500": "failed 4 times, at last with status 500",
    "503": "failed 4 times, at last with status 503",
}
"""Faults that last, and what is said of them."""


def wanted(hub: FaultyHub) -> dict[str, bytes]:
    return {name: content for name, content in hub.files.items() if not name.endswith(".py")}


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def work(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / WORK_NAME).iterdir())


def ignore(_: str) -> None:
    """Take a notice."""


def fetch(settings: FetchSettings) -> Path:
    return fetch_model(MODEL, settings, notice=ignore)


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("fault", PASSING)
def test_passing_fault_is_got_over(hub: FaultyHub, settings: FetchSettings, fault: str, source: str) -> None:
    hub.faults.extend(["", "", fault, "", fault])
    folder = fetch(replace(settings, source=source))  # pyright: ignore[reportArgumentType]
    assert content(folder) == wanted(hub)
    assert work(folder) == ["lock", "record.json"]


@pytest.mark.parametrize("fault", STAYING)
def test_lasting_fault_ends_in_an_error_and_no_file(
    hub: FaultyHub, settings: FetchSettings, folder: Path, fault: str
) -> None:
    hub.files["tokenizer.model"] = hub.files["tokenizer.model"][:100]  # small: from the hub itself
    hub.faults.extend([""] * 3)  # the small files
    hub.always = fault
    with pytest.raises(FetchError, match=STAYING[fault]):
        fetch(settings)
    assert WEIGHTS not in content(folder)
    hub.always = ""
    assert content(fetch(settings)) == wanted(hub)


@pytest.mark.parametrize("fault", ["drop", "reset", "ignore range"])
def test_lasting_fault_that_lets_bytes_through_only_slows(
    hub: FaultyHub, settings: FetchSettings, fault: str
) -> None:
    hub.always = fault
    assert content(fetch(settings)) == wanted(hub)


def test_lasting_stall_ends(hub: FaultyHub, settings: FetchSettings, folder: Path) -> None:
    hub.always = "stall at once"
    with pytest.raises(FetchError, match="failed 4 times, at last with ReadTimeout"):
        fetch(settings)
    assert content(folder) == {}


def test_file_that_changes_between_two_requests_is_begun_again(
    hub: FaultyHub, settings: FetchSettings
) -> None:
    """One half of each version would have the right size; the tree is pinned, so the old listing holds."""
    old = hub.files[WEIGHTS]
    seen: list[str] = []

    def change(name: str, sent: bytes) -> None:
        if name == WEIGHTS:
            seen.append(name)
            hub.files[WEIGHTS] = old[::-1] if len(seen) in range(3, 6) else old

    hub.after_bytes = change
    assert content(fetch(settings))[WEIGHTS] == old
    assert len(hub.requests_for("cdn", WEIGHTS)) > 11


def test_version_of_the_hub_is_believed_before_all_bytes_came(
    hub: FaultyHub, settings: FetchSettings
) -> None:
    old = hub.files[WEIGHTS]

    def change(name: str, sent: bytes) -> None:
        hub.files[WEIGHTS] = bytes([hub.files[WEIGHTS][0] ^ 1]) + old[1:] if name == WEIGHTS else old

    hub.after_bytes = change
    with pytest.raises(FetchError, match=r'it changes while it is fetched, from "\w+" to "\w+", 2 times'):
        fetch(replace(settings, download=replace(settings.download, connections=1)))


def test_without_the_hubs_version_the_digest_finds_a_change(hub: FaultyHub, settings: FetchSettings) -> None:
    hub.is_linked_etag_sent = False
    old = hub.files[WEIGHTS]
    seen: list[str] = []

    def change(name: str, sent: bytes) -> None:
        seen.append(name)
        hub.files[WEIGHTS] = old[::-1] if 3 < len(seen) < 9 else old

    hub.after_bytes = change
    assert content(fetch(settings))[WEIGHTS] == old


@pytest.mark.parametrize("source", ["huggingface", "modelscope"])
@pytest.mark.parametrize("fault", ["", "drop", "500", "flip"])
def test_token_stays_with_the_hub(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch, fault: str, source: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "ms_secret")
    hub.faults.extend(["", "", "", fault, fault])
    fetch(replace(settings, source=source))  # pyright: ignore[reportArgumentType]
    asked = {server: [seen for seen in hub.requests if seen.server == server] for server in ("hub", "cdn")}
    assert asked["hub"]
    assert asked["cdn"]
    assert all("_secret" in seen.headers["authorization"] for seen in asked["hub"])
    assert not any("_secret" in str(seen) for seen in asked["cdn"])
    assert not any({"authorization", "cookie"} & set(seen.headers) for seen in asked["cdn"])


def test_full_disk_keeps_what_came(
    hub: FaultyHub, settings: FetchSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.pwrite, [3 * PIECE_BYTES]

    def write(descriptor: int, block: bytes, offset: int) -> int:
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= len(block)
        return real(descriptor, block, offset)

    monkeypatch.setattr(os, "pwrite", write)
    with pytest.raises(
        FetchError, match=r"No space left on device, .* GB are free; what is finished is kept: free"
    ):
        fetch(replace(settings, download=replace(settings.download, connections=1)))
    assert WEIGHTS not in content(folder)
    monkeypatch.setattr(os, "pwrite", real)
    hub.requests.clear()
    assert content(fetch(settings)) == wanted(hub)
    assert len(hub.requests_for("cdn", WEIGHTS)) < 11


def test_short_writes_are_finished(
    hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[[int, memoryview, int], int] = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, block, offset: real(fd, block[:1000], offset))
    assert content(fetch(settings)) == wanted(hub)


CHILD = """
import sys
from pathlib import Path
from baichuan2_tpu.fetch.transfer.download import DownloadSettings
from baichuan2_tpu.fetch.models import FetchSettings, fetch_model
settings = FetchSettings(
    folder=Path(sys.argv[1]), download=DownloadSettings(connections=2, piece_bytes=int(sys.argv[2]))
)
fetch_model(sys.argv[3], settings, notice=print)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_download_goes_on_to_the_same_bytes(
    hub: FaultyHub, settings: FetchSettings, folder: Path, number: signal.Signals
) -> None:
    hub.faults.extend([""] * 3 + ["", "", "", "drop"])
    hub.always = "stall"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, str(folder), str(PIECE_BYTES), MODEL]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = folder / WORK_NAME / f"{WEIGHTS}.part.journal"
    while child.poll() is None and (not journal.exists() or len(journal.read_text().splitlines()) < 4):
        time.sleep(0.01)
    child.send_signal(number)
    hub.released.set()  # stalled answers end, so that a child that ends in order need not wait for them
    assert child.wait() != 0
    finished = [line.split() for line in journal.read_text().splitlines()[1:]]
    assert len(finished) >= 3
    hub.faults.clear()
    hub.always = ""
    hub.requests.clear()
    assert content(fetch(settings)) == wanted(hub)
    asked = {seen.range for seen in hub.requests_for("cdn", WEIGHTS)}
    assert not asked & {f"bytes={start}-{int(stop) - 1}" for start, stop in finished}


def test_resumed_part_with_a_wrong_range_is_begun_again(
    hub: FaultyHub, settings: FetchSettings, folder: Path
) -> None:
    """A failure of power can leave a journal that says more than the disk has."""
    hub.faults.extend([""] * 4 + ["404"])
    with pytest.raises(FetchError, match="status 404"):
        fetch(replace(settings, download=replace(settings.download, connections=1)))
    part = folder / WORK_NAME / f"{WEIGHTS}.part"
    with part.open("r+b") as file:
        file.write(bytes(PIECE_BYTES // 2))
    assert content(fetch(settings)) == wanted(hub)


def test_part_of_one_hub_is_finished_from_the_other(
    hub: FaultyHub, settings: FetchSettings, folder: Path
) -> None:
    hub.faults.extend([""] * 6 + ["404"])
    with pytest.raises(FetchError, match="status 404"):
        fetch(replace(settings, download=replace(settings.download, connections=1)))
    hub.requests.clear()
    assert content(fetch(replace(settings, source="modelscope"))) == wanted(hub)
    assert 0 < len(hub.requests_for("cdn", WEIGHTS)) < 11


def test_requests_for_ranges_name_the_pinned_commit(hub: FaultyHub, settings: FetchSettings) -> None:
    fetch(settings)
    asked = hub.requests_for("hub", WEIGHTS)
    assert {seen.path for seen in asked} == {f"/baichuan-inc/Baichuan2-7B-Base/resolve/{COMMIT}/{WEIGHTS}"}
    assert {seen.headers["accept-encoding"] for seen in asked} == {"identity"}
    assert sorted(int(seen.range.split("=")[1].split("-")[0]) for seen in asked) == [
        piece * PIECE_BYTES for piece in range(11)
    ]


def test_progress_ends_at_the_total_whatever_is_given_up(hub: FaultyHub, settings: FetchSettings) -> None:
    hub.faults.extend(["", "", "", "flip", "too many", "drop"])
    amounts: list[tuple[int, int]] = []
    fetch_model(MODEL, settings, notice=ignore, progress=lambda *amount: amounts.append(amount))
    total = sum(len(file) for file in wanted(hub).values())
    assert amounts[-1] == (total, total)
    assert all(0 <= done <= total for done, _ in amounts)


def test_long_wait_is_told(hub: FaultyHub, settings: FetchSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("baichuan2_tpu.fetch.transfer.download._NOTICE_WAIT_S", 0.005)
    hub.faults.extend(["", "", "", "429 60", "500"])
    notices: list[str] = []
    fetch_model(MODEL, settings, notice=notices.append)
    assert notices[1:] == [f"{WEIGHTS}: status 429; trying again in 0 s"]


def test_closed_part_takes_no_more_bytes(hub: FaultyHub, settings: FetchSettings, folder: Path) -> None:
    folder.mkdir()
    with PartFile(folder, RemoteFile("file", 10, Digest("sha256", "0" * 64))) as part:
        part.write(0, b"12345")
        part.add(Piece(0, 5))
    part.write(5, b"late")
    part.add(Piece(5, 10))
    assert (folder / "file.part").read_bytes() == b"12345" + bytes(5)
    assert json.loads((folder / "file.part.journal").read_text().splitlines()[0])["nbytes"] == 10
    assert (folder / "file.part.journal").read_text().splitlines()[1:] == ["0 5"]
